"""`elastic-jax bench prefill`: times the reading of prompts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

from eval.bench.settings import BenchPrefillSettings
from eval.verb import checked_settings, write_results


def main(argv: Sequence[str]) -> int:
    """Time the prefill of a model, beside transformers on torch where a Python with it is given."""
    settings = checked_settings(BenchPrefillSettings, argv, verb="bench prefill", summary=main.__doc__)
    if settings is None:
        return 0
    from rich.console import Console

    from eval.bench.prefill import measure_model, model_table

    speeds = measure_model(settings)
    Console().print(model_table(speeds))
    write_results(settings.out, {"model": [asdict(speed) for speed in speeds]})
    return 0
