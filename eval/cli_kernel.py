"""`elastic-jax bench kernel`: how fast are the attention ops, and how near to the ideal?"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from elastic_jax.cli_args import parse_verb
from elastic_jax.errors import ConfigError
from elastic_jax.settings import settings_yaml

if TYPE_CHECKING:
    from rich.table import Table

    from eval.kernel_bench import KernelReport

LONGEST = 2**18


@dataclass(frozen=True)
class BenchKernelSettings:
    """What is timed, and against what."""

    model: Literal["smollm2-135m", "llama-3.1-8b", "qwen3-4b", "qwen3-8b"] | None = None
    """Whose attention heads; by default smollm2-135m on CPU and llama-3.1-8b elsewhere."""
    lengths: tuple[int, ...] = ()
    """Tokens of the sequences, up to 262,144; by default 2,048 and 4,096 on CPU, 4,096 to 65,536 elsewhere."""
    sparse: tuple[float, ...] = (0.0, 0.3, 0.7, 1.0)
    """Shares of the KV heads that are sparse (MSR), 0 to 1, rounded to whole heads; 0 is always measured."""
    ops: tuple[Literal["hybrid", "routed", "select_blocks"], ...] = ("hybrid", "routed", "select_blocks")
    """hybrid is always measured; routed is a training step, select_blocks has a forward pass only."""
    steps: tuple[Literal["forward", "training"], ...] = ("forward", "training")
    """training is forward and backward."""
    impls: tuple[Literal["auto", "reference", "xla", "tpu", "mosaic_gpu", "triton"], ...] = ("auto",)
    """Implementations of our ops; auto is what a user gets on this device."""
    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    """Type of the operands; by default float32 on CPU and bfloat16 elsewhere."""
    rounds: int = 5
    """Timed samples of each program; programs take turns and the fastest sample counts."""
    torch_python: str | None = None
    """A Python that has torch, to time its attention on the same device: SDPA, and on a GPU FlexAttention."""
    out: str | None = None
    """JSON file for the results."""
    plot: str | None = None
    """Picture of the results; the ending names the format."""

    def __post_init__(self) -> None:
        if any(not 1 <= tokens <= LONGEST for tokens in self.lengths):
            raise ConfigError(f"lengths holds {self.lengths}; want 1 to {LONGEST:,} tokens.")
        if any(not 0 <= share <= 1 for share in self.sparse):
            raise ConfigError(f"sparse holds {self.sparse}; want shares between 0 and 1.")
        if self.rounds < 1 or not self.steps or not self.impls:
            raise ConfigError("rounds wants at least 1, steps and impls at least one name each.")


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

    from eval.kernel_bench import measure_kernels

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
        from eval.kernel_figure import draw_kernels

        draw_kernels(report, Path(settings.plot))
    return 1 if report.failed else 0


def kernel_table(report: KernelReport, step: str) -> Table:
    """A row per program, by length, the dense rivals first."""
    from rich.table import Table

    table = Table(title=f"{report.model}, {report.dtype}, {report.device}: {step}")
    table.add_column("op", no_wrap=True)
    table.add_column("by", no_wrap=True)
    for column in ("MSR", "tokens", "ms", "TFLOP/s", "of ideal", "dense/this"):
        table.add_column(column, justify="right", no_wrap=True)
    rows = [speed for speed in report.speeds if speed.step == step]
    for speed in sorted(rows, key=lambda row: (row.tokens, row.op, row.implementation, row.msr or 0.0)):
        table.add_row(
            speed.op,
            speed.implementation,
            "" if speed.msr is None else f"{speed.msr:.2f}",
            f"{speed.tokens:,}",
            f"{1e3 * speed.seconds:,.2f}",
            f"{speed.tflops:,.3g}",
            "" if speed.of_ideal is None else f"{speed.of_ideal:.2f}",
            "" if speed.against_dense is None else f"{speed.against_dense:.2f}",
        )
    return table
