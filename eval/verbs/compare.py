"""`elastic-jax eval compare`: two runs of a benchmark, sample by sample."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from elastic_jax.cli.args import parse_verb, required
from elastic_jax.settings import settings_yaml


@dataclass(frozen=True)
class CompareSettings:
    """Which runs, and which of their arms."""

    a: str | None = None
    """Output folder of the first run."""
    b: str | None = None
    """Output folder of the second run."""
    arm_a: str | None = None
    """Arm of the first run, such as full; by default every arm that both have is compared with itself."""
    arm_b: str | None = None
    """Arm of the second run."""
    out: str | None = None
    """Folder for comparison.md and comparison.csv; by default the table is only printed."""


def main(argv: Sequence[str]) -> int:
    """Compare two runs, paired by sample: difference, interval, sign test."""
    asked = parse_verb(CompareSettings, argv, verb="eval compare", summary=str(main.__doc__))
    settings = asked.settings
    a = required(settings.a, "--a FOLDER", "first run")
    b = required(settings.b, "--b FOLDER", "second run")
    if asked.dry_run:
        print(settings_yaml(settings), end="")
        return 0

    from eval.compare import compare_runs, render_comparison

    report = compare_runs(a, b, settings.arm_a, settings.arm_b)
    text = render_comparison(report)
    print(text, end="")
    if settings.out is not None:
        out = Path(settings.out)
        out.mkdir(parents=True, exist_ok=True)
        (out / "comparison.md").write_text(text, encoding="utf-8")
        with (out / "comparison.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(report["rows"][0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(report["rows"])
    return 0
