"""The picture of the router report: accuracy by length, sparsity by task."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from elastic_jax.plots import save_figure
from eval.samples import VIEWS
from eval.suites.router.report import ALL_PROBES

_COLOURS = {"full": "#30638e", "sparse": "#d1495b", "elastic": "#2a9d54"}
_LABELS = {"full": "full attention", "sparse": "all heads sparse", "elastic": "routed"}


def draw_report(report: dict[str, Any], path: Path) -> None:
    """Writes retrieval accuracy by length (with intervals) beside MSR by task, in the format of the path's ending."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import PercentFormatter

    figure = Figure(figsize=(10, 3.8), layout="constrained")
    accuracy, sparsity = figure.subplots(1, 2)
    for view in VIEWS:
        rows = [row for row in report["retrieval"] if row["task"] == ALL_PROBES and row["view"] == view]
        values = [row["accuracy"] for row in rows]
        below = [row["accuracy"] - row["interval"][0] for row in rows]
        above = [row["interval"][1] - row["accuracy"] for row in rows]
        accuracy.errorbar(
            [row["length"] for row in rows],
            values,
            yerr=[below, above],
            marker="o",
            capsize=3,
            color=_COLOURS[view],
            label=_LABELS[view],
        )
    lengths = sorted({row["length"] for row in report["retrieval"]})
    accuracy.set_xscale("log", base=2)
    accuracy.set_xticks(lengths, [f"{length:,}" for length in lengths])
    accuracy.minorticks_off()
    accuracy.set_ylim(-0.02, 1.02)
    accuracy.yaxis.set_major_formatter(PercentFormatter(1.0))
    accuracy.set_xlabel("prompt tokens")
    accuracy.set_title("Retrieval: answers right, word for word", fontsize=10)
    accuracy.legend(fontsize=8)

    chosen = [
        row for row in [*report["retrieval"], *report["loss"]] if row["view"] == "elastic" and row["task"] != ALL_PROBES
    ]
    tasks = list(dict.fromkeys(row["task"] for row in chosen))
    width = 0.8 / len(lengths)
    for number, length in enumerate(lengths):
        heights = {row["task"]: row["msr"] for row in chosen if row["length"] == length}
        places = [place + (number - (len(lengths) - 1) / 2) * width for place in range(len(tasks))]
        shade = 0.4 + 0.6 * (number + 1) / len(lengths)
        sparsity.bar(
            places,
            [heights[task] for task in tasks],
            width,
            color=_COLOURS["elastic"],
            alpha=shade,
            label=f"{length:,} tokens",
        )
    sparsity.set_xticks(range(len(tasks)), tasks)
    sparsity.set_ylim(0, 1.15)
    sparsity.set_title("Share of heads that the routers run sparse (MSR)", fontsize=10)
    sparsity.legend(fontsize=8, loc="upper center", ncols=len(lengths))
    save_figure(figure, path)
