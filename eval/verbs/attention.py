"""`elastic-jax bench attention`: times attention with sparse heads against full attention, and full against torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

from eval.bench.settings import BenchAttentionSettings
from eval.verb import checked_settings, write_results


def main(argv: Sequence[str]) -> int:
    """Time attention alone: full against torch, a sparse mixture against full, the training form against full."""
    settings = checked_settings(BenchAttentionSettings, argv, verb="bench attention", summary=main.__doc__)
    if settings is None:
        return 0
    from eval.bench.attention import compare_attention

    speeds = compare_attention(settings)
    for speed in speeds:
        print(speed.line())
    write_results(settings.out, [asdict(speed) for speed in speeds])
    return 0
