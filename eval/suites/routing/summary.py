"""How routing differs between tasks: how often each head runs full, and how similar tasks look to the routers.

Heat maps show how often each head runs full, layer by layer, for each task.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from elastic_jax.plots import save_figure
from eval.harness.routing import write_head_scores
from eval.harness.runner import Record
from eval.report.page import table

ALWAYS = 0.9
"""A head that runs full (or sparse) for at least this share of the prompts is called full (or sparse), else mixed."""


def draw_frequency(frequency: Mapping[str, np.ndarray], path: Path) -> None:
    """One strip per task: layers to the right, KV heads downwards, share of prompts with full attention as colour."""
    from matplotlib.figure import Figure

    layers, heads = next(iter(frequency.values())).shape
    strip = 0.55 + 0.2 * heads
    figure = Figure(figsize=(max(6.0, 1.8 + 0.22 * layers), 0.6 + strip * len(frequency)), layout="constrained")
    all_axes = figure.subplots(len(frequency), 1, sharex=True, squeeze=False)[:, 0]
    for axes, (task, found) in zip(all_axes, frequency.items(), strict=True):
        image = axes.imshow(found.T, cmap="YlGnBu", vmin=0, vmax=1, aspect="auto")
        kinds = kinds_of_heads(found)
        axes.set_title(
            f"{task}: MSR {1 - found.mean():.2f}; heads: "
            f"{kinds['full']} full, {kinds['mixed']} mixed, {kinds['sparse']} sparse",
            loc="left",
            fontsize=8,
        )
        axes.set_yticks(range(heads))
        axes.tick_params(labelsize=6)
    all_axes[-1].set_xlabel("layer", fontsize=8)
    figure.colorbar(image, ax=list(all_axes), fraction=0.03).set_label("share of prompts run full", fontsize=7)
    save_figure(figure, path)


def kinds_of_heads(frequency_LK: np.ndarray) -> dict[str, int]:
    """How many heads are full, mixed and sparse."""
    full, sparse = int((frequency_LK >= ALWAYS).sum()), int((frequency_LK <= 1 - ALWAYS).sum())
    return {"full": full, "mixed": frequency_LK.size - full - sparse, "sparse": sparse}


def draw_scores(scores_LK: np.ndarray, path: Path) -> None:
    """Retrieval scores: layers to the right, KV heads downwards."""
    from matplotlib.figure import Figure

    layers, heads = scores_LK.shape
    figure = Figure(figsize=(max(6.0, 1.8 + 0.22 * layers), 1.2 + 0.25 * heads), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(scores_LK.T, cmap="magma", vmin=0, aspect="auto")
    axes.set_xlabel("layer")
    axes.set_ylabel("KV head")
    axes.set_yticks(range(heads))
    figure.colorbar(image, ax=axes).set_label("attention to the needle", fontsize=8)
    save_figure(figure, path)


def full_frequency(records: Sequence[Record]) -> dict[str, np.ndarray]:
    """Share of the prompts for which each head ran full, `[L, K]`, by task and over all (`all`)."""
    by_task: dict[str, list[Any]] = defaultdict(list)
    for record in records:
        by_task[record["task"]].append(record["details"]["full"])
        by_task["all"].append(record["details"]["full"])
    return {task: np.mean(found, axis=0) for task, found in by_task.items()}


def task_similarity(records: Sequence[Record], place: str) -> tuple[list[str], np.ndarray]:
    """Tasks, and the cosine of the mean representations of each two of them, mean over layers.

    `place`: `before` or `after` the task MLP (Elastic Attention, figure 5).
    """
    by_task: dict[str, list[Any]] = defaultdict(list)
    for record in records:
        by_task[record["task"]].append(record["details"][place])
    means_ZLH = np.stack([np.mean(found, axis=0) for found in by_task.values()])
    unit = means_ZLH / np.maximum(np.linalg.norm(means_ZLH, axis=-1, keepdims=True), 1e-12)
    return list(by_task), np.einsum("ylh,zlh->yzl", unit, unit).mean(-1)


def mean_similarity(cosines_ZZ: np.ndarray) -> float:
    """Mean over pairs of different tasks."""
    return float(cosines_ZZ[~np.eye(len(cosines_ZZ), dtype=bool)].mean())


def routing_section(records: Sequence[Record], out: Path) -> str:
    """Draws `routing.png` and says in Markdown how many heads of each kind tasks have and how similar tasks look.

    Describes the arm without a bias, else the first routed arm. Without a routed arm the section is empty.
    """
    elastic = [record for record in records if record["arm"].startswith("elastic") and "details" in record]
    if not elastic:
        return ""
    arm = min((record["arm"] for record in elastic), key=lambda name: name != "elastic")
    routed = [record for record in elastic if record["arm"] == arm]
    frequency = full_frequency(routed)
    draw_frequency(frequency, out / "routing.png")
    body = []
    for task, found in frequency.items():
        kinds = kinds_of_heads(found)
        n = sum(task in (record["task"], "all") for record in routed)
        body.append(
            [task, str(n), f"{1 - found.mean():.3f}", *(str(kinds[kind]) for kind in ("full", "mixed", "sparse"))]
        )
    parts = [
        f"## Routing by task\n\n![routing.png](routing.png)\n\nArm: {arm}. Heads by how often they run full: "
        f"full in at least {ALWAYS:.0%} of the prompts, sparse in at least {ALWAYS:.0%}, mixed otherwise.\n\n"
        + table(["task", "n", "MSR", "full heads", "mixed", "sparse heads"], body)
    ]
    tasks, before = task_similarity(routed, "before")
    if len(tasks) > 1:
        _, after = task_similarity(routed, "after")
        for place, cosines in (("before", before), ("after", after)):
            rows = [[task, *(f"{value:.2f}" for value in line)] for task, line in zip(tasks, cosines, strict=True)]
            parts.append(
                f"Cosine of task representations {place} the task MLP, mean over layers; between different tasks "
                f"{mean_similarity(cosines):.3f} on average.\n\n" + table(["task", *tasks], rows)
            )
    return "\n\n".join(parts)


def heads_section(records: Sequence[Record], out: Path) -> str:
    """Writes `heads.json` and `heads.png`, and lists as Markdown the heads that look at needles most."""
    scores_LK = np.mean([record["details"]["needle_attention"] for record in records], axis=0)
    write_head_scores(out / "heads.json", scores_LK, len(records))
    draw_scores(scores_LK, out / "heads.png")
    order = np.argsort(-scores_LK, axis=None, kind="stable")[:20]
    body = [
        [f"layer {place // scores_LK.shape[1]}, KV head {place % scores_LK.shape[1]}", f"{scores_LK.flat[place]:.3f}"]
        for place in order.tolist()
    ]
    return (
        "## Heads\n\n![heads.png](heads.png)\n\nMean share of attention on the needle over "
        f"{len(records)} prompts, the best 20; all of them are in `heads.json`.\n\n"
        + table(["head", "attention"], body)
    )
