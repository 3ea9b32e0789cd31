"""`elastic-jax eval compare`: two runs of a benchmark, sample by sample."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from elastic_jax.cli.args import required
from elastic_jax.settings import FilePath
from eval.verb import checked_settings


@dataclass(frozen=True)
class CompareSettings:
    """Which runs, and which of their arms."""

    a: FilePath | None = None
    """Output folder of the first run."""
    b: FilePath | None = None
    """Output folder of the second run."""
    arm_a: str | None = None
    """Arm of the first run, such as full; by default every arm that both have is compared with itself."""
    arm_b: str | None = None
    """Arm of the second run."""
    out: FilePath | None = None
    """Folder for comparison.md and comparison.csv; by default the table is only printed."""


def main(argv: Sequence[str]) -> int:
    """Compare two runs, paired by sample: difference, interval, sign test."""
    settings = checked_settings(CompareSettings, argv, verb="eval compare", summary=main.__doc__, check=_runs)
    if settings is None:
        return 0

    from eval.compare import compare_runs, render_comparison, write_comparison

    report = compare_runs(*_runs(settings), settings.arm_a, settings.arm_b)
    print(render_comparison(report), end="")
    if settings.out is not None:
        write_comparison(report, Path(settings.out))
    return 0


def _runs(settings: CompareSettings) -> tuple[str, str]:
    return required(settings.a, "--a FOLDER", "first run"), required(settings.b, "--b FOLDER", "second run")
