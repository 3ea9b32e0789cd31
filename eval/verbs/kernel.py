"""`elastic-jax bench kernel`: how fast are the attention ops, and how near to the ideal?"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from elastic_jax.cli.args import parse_verb
from elastic_jax.settings import settings_yaml
from eval.bench.settings import BenchKernelSettings


def main(argv: Sequence[str]) -> int:
    """Time attention kernels by length and sparsity, against the best dense kernel of the machine."""
    asked = parse_verb(BenchKernelSettings, argv, verb="bench kernel", summary=str(main.__doc__))
    settings = asked.settings
    if asked.dry_run:
        print(settings_yaml(settings), end="")
        return 0
    if settings.torch_python is not None:
        os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # else nothing of a GPU is left for torch

    from rich.console import Console

    from eval.bench.kernel import measure_kernels
    from eval.bench.kernel_page import draw_kernels, kernel_table

    report = measure_kernels(settings)
    if settings.out is not None:
        Path(settings.out).parent.mkdir(parents=True, exist_ok=True)
        Path(settings.out).write_text(json.dumps(asdict(report), indent=1) + "\n")
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
