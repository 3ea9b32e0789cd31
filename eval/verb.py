"""What the verbs of this package share: reading the settings, running a benchmark, writing a result file."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from elastic_jax.cli.args import EXIT_INCOMPLETE, parse_verb, required
from elastic_jax.files import check_output, write_json
from elastic_jax.settings import settings_yaml
from eval.harness.settings import LISTS, BenchmarkSettings, split_commas

if TYPE_CHECKING:
    from eval.benchmark import Benchmark


def benchmark_verb[S: BenchmarkSettings](
    cls: type[S],
    argv: Sequence[str],
    make: Callable[[S], Benchmark],
    *,
    verb: str,
    summary: str | None,
    further: Mapping[str, str] = MappingProxyType({}),
) -> int:
    """Runs the benchmark that `make` builds from the settings, and says where its report is.

    Returns the exit code: `EXIT_INCOMPLETE` where samples failed, or are missing from a run that is no shard.

    Args:
        further: names of other files of the report, by what they hold.
    """
    asked = parse_verb(cls, split_commas(argv, *LISTS), verb=verb, summary=str(summary))
    out = report_folder(asked.settings.out)

    from eval.benchmark import run_benchmark

    report = run_benchmark(make(asked.settings), asked.settings, out, dry_run=asked.dry_run)
    if asked.dry_run:
        return 0
    files = {"Report": "results.md", **further}
    print(", ".join(f"{what}: {out / name}" for what, name in files.items()))
    failed, missing = len(report["errors"]), report["wanted"] - report["done"]
    if failed or (missing and asked.settings.shard == BenchmarkSettings.shard):
        print(
            f"elastic-jax {verb}: incomplete, {missing} of {report['wanted']} samples are missing and {failed} failed. "
            "The same command asks for them again.",
            file=sys.stderr,
        )
        return EXIT_INCOMPLETE
    return 0


def checked_settings[S](
    cls: type[S],
    argv: Sequence[str],
    *,
    verb: str,
    summary: str | None,
    check: Callable[[S], object] | None = None,
) -> S | None:
    """The settings of a verb that have passed `check`; None after a dry run, which prints them.

    By default it is checked that the file of `--out`, if there is one, can be written.
    """
    asked = parse_verb(cls, argv, verb=verb, summary=str(summary))
    if check is not None:
        check(asked.settings)
    elif (out := getattr(asked.settings, "out", None)) is not None:
        check_output(Path(out))
    if asked.dry_run:
        print(settings_yaml(asked.settings), end="")
        return None
    return asked.settings


def report_folder(out: str | None) -> Path:
    """The folder that `--out` names.

    Raises:
        ConfigError: it names none, or one that cannot be written.
    """
    folder = Path(required(out, "--out FOLDER", "folder for the report"))
    check_output(folder, folder=True)
    return folder


def write_results(out: str | None, results: Any) -> None:
    """Writes results as JSON to the file that `--out` names, if it names one, and makes its folder."""
    if out is not None:
        Path(out).parent.mkdir(parents=True, exist_ok=True)
        write_json(Path(out), results)
