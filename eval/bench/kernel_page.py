"""The picture of `bench kernel`: time by length, and how near to the ideal each sparsity comes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from elastic_jax.plots import save_figure
from eval.bench.kernel import DENSE, KernelReport, KernelSpeed

if TYPE_CHECKING:
    from rich.table import Table


def draw_kernels(report: KernelReport, path: Path) -> None:
    """A row of panels for each step: milliseconds of every program by length, then the fraction of the ideal by MSR."""
    import matplotlib
    from matplotlib.figure import Figure

    steps = list(dict.fromkeys(speed.step for speed in report.speeds))
    figure = Figure(figsize=(11, 3.9 * len(steps)), layout="constrained")
    colours = matplotlib.colormaps["viridis"]
    for (times, ideals), step in zip(figure.subplots(len(steps), 2, squeeze=False), steps, strict=True):
        speeds = [speed for speed in report.speeds if speed.step == step]
        lengths = sorted({speed.tokens for speed in speeds})
        programs = dict.fromkeys((speed.op, speed.implementation, speed.msr) for speed in speeds)
        rivals = list(dict.fromkeys(speed.implementation for speed in speeds if speed.op == DENSE))
        for op, implementation, msr in programs:
            line = [
                speed for speed in speeds if (speed.op, speed.implementation, speed.msr) == (op, implementation, msr)
            ]
            style = {"color": colours(0.9 * (msr or 0.0))}
            if op == DENSE:
                style = {"color": "black", "linestyle": (":", "--", "-.")[rivals.index(implementation) % 3]}
            times.plot(
                [speed.tokens for speed in line],
                [1e3 * speed.seconds for speed in line],
                marker={DENSE: "x", "hybrid": "o", "routed": "s", "select_blocks": "^"}[op],
                label=implementation if op == DENSE else f"{op}, {implementation}, MSR {msr:.2f}",
                **style,
            )
        times.set_xscale("log", base=2)
        times.set_yscale("log")
        times.set_xticks(lengths, [f"{length:,}" for length in lengths])
        times.minorticks_off()
        times.set_xlabel("tokens")
        times.set_ylabel("milliseconds")
        times.set_title(f"{step}: time", fontsize=10)
        times.legend(fontsize=6)

        for number, length in enumerate(lengths):
            shade = colours(0.9 * number / max(1, len(lengths) - 1))
            for op, mark in (("hybrid", "o-"), ("routed", "s--")):
                line = sorted(_judged(speeds, op, length), key=lambda speed: speed.msr or 0.0)
                if line:
                    places = [speed.msr for speed in line]
                    heights = [speed.of_ideal for speed in line]
                    ideals.plot(places, heights, mark, color=shade, label=f"{op}, {length:,} tokens")
        ideals.axhline(1.0, color="grey", linewidth=0.8)
        ideals.set_ylim(bottom=0.0)
        ideals.set_xlabel("share of KV heads that are sparse (MSR)")
        ideals.set_title(f"{step}: fraction of the ideal (1 = skipped work is skipped time)", fontsize=10)
        ideals.legend(fontsize=7)
    figure.suptitle(f"{report.model}, {report.dtype}, {report.device}", fontsize=10)
    save_figure(figure, path)


def _judged(speeds: list[KernelSpeed], op: str, tokens: int) -> list[KernelSpeed]:
    """The rows of an op at a length, by its first implementation."""
    rows = [speed for speed in speeds if speed.op == op and speed.tokens == tokens and speed.of_ideal is not None]
    return [speed for speed in rows if speed.implementation == rows[0].implementation]


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
