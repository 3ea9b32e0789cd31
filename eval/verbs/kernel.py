"""`elastic-jax bench kernel`: times the attention ops against the best dense kernel."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from elastic_jax.plots import check_figure
from eval.bench.settings import BenchKernelSettings
from eval.verb import checked_settings, write_results


def main(argv: Sequence[str]) -> int:
    """Time attention kernels by length and sparsity, against the best dense kernel of the machine."""
    settings = checked_settings(BenchKernelSettings, argv, verb="bench kernel", summary=main.__doc__)
    if settings is None:
        return 0
    if settings.torch_python is not None:
        os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # else nothing of a GPU is left for torch

    if settings.plot is not None:
        check_figure(settings.plot)

    from rich.console import Console

    from eval.bench.kernel import measure_kernels
    from eval.bench.kernel_page import draw_kernels, kernel_table

    report = measure_kernels(settings)
    write_results(settings.out, asdict(report))
    console = Console()
    for step in settings.steps:
        console.print(kernel_table(report, step))
    for line in report.left_out:
        console.print(f"left out: {line}", highlight=False, markup=False)
    for line in report.failed:
        console.print(f"FAILED: {line}", highlight=False, markup=False)
    if settings.plot is not None:
        draw_kernels(report, Path(settings.plot))
    return 1 if report.failed else 0
