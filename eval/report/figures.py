"""Pictures of a benchmark report: score by length or task, score against sparsity, depth against length."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from elastic_jax.plots import save_figure
from eval.harness.runner import Record
from eval.report.tables import Row
from eval.samples import ALL_SPARSE, ELASTIC, FULL

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_COLOURS = {FULL: "#30638e", ALL_SPARSE: "#d1495b", ELASTIC: "#2a9d54"}
_OTHERS = ("#8d6a9f", "#edae49", "#00798c", "#666666", "#c06e52")


def draw_benchmark(report: dict[str, Any], records: Sequence[Record], out: Path) -> list[str]:
    """Writes the pictures that the results allow; returns the names of their files."""
    from matplotlib.figure import Figure

    rows: list[Row] = report["means"] or report["rows"]
    drawn = []
    figure = Figure(figsize=(7.2, 4), layout="constrained")
    axes = figure.subplots()
    if "length" in report["axes"] and len({row["length"] for row in rows}) > 1:
        draw_by_length(axes, rows, report["arms"])
    else:
        _by_task(axes, report["rows"], report["arms"])
    axes.set_ylim(-2, 102)
    axes.set_ylabel("score, %")
    axes.legend(fontsize=8)
    save_figure(figure, out / "results.png")
    drawn.append("results.png")
    biased = {row["arm"] for row in rows if row["arm"].startswith(ELASTIC)}
    if len(biased) > 1 and all("msr" in row for row in rows):
        figure = Figure(figsize=(6, 4), layout="constrained")
        _against_sparsity(figure.subplots(), rows, report["arms"])
        save_figure(figure, out / "sparsity.png")
        drawn.append("sparsity.png")
    if "depth" in report["axes"]:
        for number, arm in enumerate(report["arms"]):
            name = f"depth_{number}.png"
            _depth_maps([record for record in records if record["arm"] == arm], arm, out / name)
            drawn.append(name)
    return drawn


def colour(arm: str, place: int) -> str:
    """The colour of an arm in every picture."""
    return _COLOURS.get(arm) or _OTHERS[place % len(_OTHERS)]


def draw_by_length(axes: Axes, rows: Sequence[Row], arms: Sequence[str]) -> None:
    """One line per arm: score in percent with its interval, over the length of prompt and answer."""
    lengths = sorted({row["length"] for row in rows})
    for place, arm in enumerate(arms):
        chosen = sorted((row for row in rows if row["arm"] == arm), key=lambda row: row["length"])
        _errorbars(axes, [row["length"] for row in chosen], chosen, arm, place, "o-")
    axes.set_xscale("log", base=2)
    axes.set_xticks(lengths, [f"{length:,}" for length in lengths])
    axes.minorticks_off()
    axes.set_xlabel("tokens of prompt and answer")


def _by_task(axes: Axes, rows: Sequence[Row], arms: Sequence[str]) -> None:
    tasks = list(dict.fromkeys(row["task"] for row in rows))
    for place, arm in enumerate(arms):
        chosen = [row for row in rows if row["arm"] == arm]
        offset = (place - (len(arms) - 1) / 2) * 0.12
        _errorbars(axes, [tasks.index(row["task"]) + offset for row in chosen], chosen, arm, place, "o")
    axes.set_xticks(
        range(len(tasks)), tasks, rotation=30 if len(tasks) > 4 else 0, ha="right" if len(tasks) > 4 else "center"
    )


def _against_sparsity(axes: Axes, rows: Sequence[Row], arms: Sequence[str]) -> None:
    lengths = sorted({row.get("length", 0) for row in rows})
    for length in lengths:
        chosen = sorted((row for row in rows if row.get("length", 0) == length), key=lambda row: row["msr"])
        label = f"{length:,} tokens" if length else None
        axes.plot([row["msr"] for row in chosen], [100 * row["score"] for row in chosen], "-", label=label)
    for row in rows:
        place = arms.index(row["arm"])
        axes.plot(row["msr"], 100 * row["score"], "o", color=colour(row["arm"], place))
        axes.annotate(
            row["arm"], (row["msr"], 100 * row["score"]), fontsize=6, xytext=(3, 3), textcoords="offset points"
        )
    axes.set_xlabel("share of heads that run sparse (MSR)")
    axes.set_ylabel("score, %")
    if len(lengths) > 1:
        axes.legend(fontsize=8)


def _errorbars(axes: Axes, places: Sequence[float], rows: Sequence[Row], arm: str, place: int, form: str) -> None:
    scores = [100 * row["score"] for row in rows]
    below = [max(0.0, 100 * (row["score"] - row["interval"][0])) for row in rows]
    above = [max(0.0, 100 * (row["interval"][1] - row["score"])) for row in rows]
    axes.errorbar(places, scores, yerr=[below, above], fmt=form, capsize=3, color=colour(arm, place), label=arm)


def _depth_maps(records: Sequence[Record], arm: str, path: Path) -> None:
    """One map per task: depth of the needle downwards, length to the right, mean score as colour."""
    import numpy as np
    from matplotlib.figure import Figure

    tasks = list(dict.fromkeys(record["task"] for record in records))
    figure = Figure(figsize=(3.4 * len(tasks) + 1, 3.6), layout="constrained")
    all_axes = figure.subplots(1, max(1, len(tasks)), squeeze=False)[0]
    for axes, task in zip(all_axes, tasks, strict=False):
        cells: dict[tuple[int, int], list[float]] = defaultdict(list)
        for record in records:
            if record["task"] == task:
                where = (record["axes"]["depth"], record["axes"]["length"])
                cells[where].append(record["scores"].get(record["main"], 0.0))
        depths, lengths = (sorted({where[part] for where in cells}) for part in (0, 1))
        grid = np.full((len(depths), len(lengths)), np.nan)
        for (depth, length), scores in cells.items():
            grid[depths.index(depth), lengths.index(length)] = 100 * np.mean(scores)
        image = axes.imshow(grid, cmap="RdYlGn", vmin=0, vmax=100, aspect="auto")
        axes.set_xticks(range(len(lengths)), [f"{length:,}" for length in lengths], rotation=45, fontsize=7)
        axes.set_yticks(range(len(depths)), [f"{depth}" for depth in depths], fontsize=7)
        axes.set_title(task, fontsize=9)
        axes.set_xlabel("tokens", fontsize=8)
    all_axes[0].set_ylabel("depth of the needle, %", fontsize=8)
    figure.suptitle(arm, fontsize=10)
    figure.colorbar(image, ax=list(all_axes), label="score, %")
    save_figure(figure, path)
