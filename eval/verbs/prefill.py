"""`elastic-jax bench prefill`: how fast prompts are read."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from elastic_jax import smollm2
from elastic_jax.cli.args import parse_verb
from elastic_jax.errors import ConfigError
from elastic_jax.settings import settings_yaml

if TYPE_CHECKING:
    from rich.table import Table

    from eval.bench.prefill import ModelSpeed


@dataclass(frozen=True)
class BenchPrefillSettings:
    """What is timed, and against what."""

    model: str = smollm2.NAME
    """Hugging Face directory or hub id, .gguf file, Elastic Attention checkpoint, or `smollm2`."""
    router: str | None = None
    """Directory of a router-only checkpoint; by default the model's own."""
    lengths: tuple[int, ...] = (2048, 8192)
    """Tokens of the prompts that the whole model reads."""
    dtypes: tuple[Literal["float32", "bfloat16"], ...] = ("float32", "bfloat16")
    """Number formats of the weights."""
    repeats: int = 1
    """Timed runs after the warming one; the median counts."""
    torch_python: str | None = None
    """A Python that has torch and transformers, to time the same weights and prompts there."""
    out: str | None = None
    """JSON file for the results."""

    def __post_init__(self) -> None:
        if not self.lengths or min(self.lengths) < 1 or not self.dtypes or self.repeats < 1:
            raise ConfigError("lengths and dtypes want at least one value each, lengths and repeats at least 1.")


def main(argv: Sequence[str]) -> int:
    """Time the prefill of a model, beside transformers on torch where a Python with it is given."""
    asked = parse_verb(BenchPrefillSettings, argv, verb="bench prefill", summary=str(main.__doc__))
    settings = asked.settings
    if asked.dry_run:
        print(settings_yaml(settings), end="")
        return 0

    from rich.console import Console

    from eval.bench.prefill import measure_model

    speeds = measure_model(
        settings.model,
        settings.router,
        lengths=settings.lengths,
        dtypes=settings.dtypes,
        repeats=settings.repeats,
        torch_python=settings.torch_python,
    )
    Console().print(model_table(speeds))
    if settings.out is not None:
        Path(settings.out).parent.mkdir(parents=True, exist_ok=True)
        Path(settings.out).write_text(json.dumps({"model": [asdict(speed) for speed in speeds]}, indent=1) + "\n")
    return 0


def model_table(speeds: Sequence[ModelSpeed]) -> Table:
    """A row per program, dtype and length; the last column says how many times faster than transformers it was."""
    from rich.table import Table

    from eval.bench.prefill import TORCH

    torch_seconds = {(speed.dtype, speed.tokens): speed.seconds for speed in speeds if speed.program == TORCH}
    table = Table("program", "dtype", title="Prefill of the whole model")
    for column in ("tokens", "seconds", "tokens/s", f"{TORCH} / this"):
        table.add_column(column, justify="right")
    for speed in sorted(speeds, key=lambda speed: (speed.dtype, speed.tokens)):
        baseline = torch_seconds.get((speed.dtype, speed.tokens))
        ratio = f"{baseline / speed.seconds:.2f}" if baseline else "–"
        figures = (f"{speed.tokens:,}", f"{speed.seconds:.2f}", f"{speed.tokens / speed.seconds:,.0f}", ratio)
        table.add_row(speed.program, speed.dtype, *figures)
    return table
