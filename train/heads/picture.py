"""Pictures of a calibration: the heads by layer, and what each share of sparse heads costs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from elastic_jax.config import HeadMode
from elastic_jax.heads import Heads

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def gates_figure(heads: Heads) -> Figure:
    """Layers from left to right, KV heads from top to bottom; the darker, the later a head becomes sparse."""
    from matplotlib.figure import Figure

    layers, count = heads.order.shape
    figure = Figure(figsize=(max(6.0, 1.5 + 0.24 * layers), 1.4 + 0.24 * count), layout="constrained")
    axis = figure.subplots()
    place = 1 - heads.order / (heads.order.size - 1)
    image = axis.imshow(place.T, cmap="YlGnBu", vmin=0, vmax=1, aspect="auto")
    layer, head = np.nonzero(heads.modes() == HeadMode.FULL)
    axis.plot(layer, head, "o", color="white", markeredgecolor="black", markersize=4)
    axis.set_title(f"{len(layer)} of {heads.order.size} heads full at MSR {heads.msr:g} (dots)", loc="left", fontsize=9)
    axis.set_xlabel("layer", fontsize=8)
    axis.set_ylabel("KV head", fontsize=8)
    axis.set_yticks(range(count) if count <= 16 else range(0, count, 8))
    axis.tick_params(labelsize=7)
    bar = figure.colorbar(image, ax=axis, fraction=0.03, pad=0.01, ticks=[0, 1])
    bar.ax.set_yticklabels(["first", "last"], fontsize=7)
    bar.set_label("becomes sparse", fontsize=8)
    return figure


def curve_figure(heads: Heads) -> Figure:
    """KL from full attention by the share of sparse heads."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.0, 3.2), layout="constrained")
    axis = figure.subplots()
    points = sorted(heads.curve, key=lambda point: point.msr)
    axis.plot([100 * point.msr for point in points], [point.kl for point in points], "o-", color="#2a6f97")
    axis.axvline(100 * heads.msr, color="#999999", linewidth=1, linestyle="--")
    axis.set_ylim(bottom=0)
    axis.set_xlabel("sparse heads (MSR), %")
    axis.set_ylabel("KL from full attention, nats")
    axis.set_title("held-out samples; dashed: the MSR of this record", loc="left", fontsize=9)
    axis.grid(alpha=0.3)
    return figure
