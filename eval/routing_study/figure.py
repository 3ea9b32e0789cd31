"""Heat maps of how often each head runs full, layer by layer, for each task."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from elastic_jax.plots import save_figure

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
