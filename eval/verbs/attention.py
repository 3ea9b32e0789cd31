"""`elastic-jax bench attention`: is skipped work skipped time, and how do we compare with torch?"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from elastic_jax.cli.args import parse_verb
from elastic_jax.settings import settings_yaml
from eval.bench.settings import BenchAttentionSettings


def main(argv: Sequence[str]) -> int:
    """Time attention alone: full against torch, a sparse mixture against full, the training form against full."""
    asked = parse_verb(BenchAttentionSettings, argv, verb="bench attention", summary=str(main.__doc__))
    settings = asked.settings
    if asked.dry_run:
        print(settings_yaml(settings), end="")
        return 0
    from eval.bench.attention import full_against_torch, mixture_against_full, training_against_full

    speeds = [mixture_against_full(settings), training_against_full(settings)]
    if settings.torch_python is not None:
        speeds.insert(0, full_against_torch(settings))
    for speed in speeds:
        line = (
            f"{speed.compared}, {speed.tokens:,} tokens: {speed.seconds:.3f} s against {speed.baseline_seconds:.3f} s"
        )
        line += f": {speed.speed_up:.2f}x"
        if speed.allowed is not None:
            line += f", {speed.speed_up / speed.allowed:.2f} of the {speed.allowed:.2f}x that the skipped work allows"
        print(line)
    if settings.out is not None:
        Path(settings.out).parent.mkdir(parents=True, exist_ok=True)
        Path(settings.out).write_text(json.dumps([asdict(speed) for speed in speeds], indent=1) + "\n")
    return 0
