"""Pictures of what the routers decide."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from elastic_jax.errors import ConfigError
from elastic_jax.files import check_output

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from elastic_jax.inspection import PromptRouting


def routing_heatmap(prompts: Sequence[PromptRouting]) -> Figure:
    """One strip per prompt: layers from left to right, KV heads from top to bottom.

    The colour is the router's probability of full attention; a dot marks the heads that run full.
    """
    import numpy as np
    from matplotlib.figure import Figure

    layers, heads = prompts[0].full_LK.shape
    strip = 0.5 + 0.22 * heads
    figure = Figure(figsize=(max(7.0, 1.6 + 0.24 * layers), 0.9 + strip * len(prompts)), layout="constrained")
    axes = figure.subplots(len(prompts), 1, sharex=True, squeeze=False)[:, 0]
    for axis, prompt in zip(axes, prompts, strict=True):
        image = axis.imshow(prompt.probability_LK.T, cmap="YlGnBu", vmin=0, vmax=1, aspect="auto")
        layer, head = np.nonzero(prompt.full_LK)
        axis.plot(layer, head, "o", color="white", markeredgecolor="black", markersize=4)
        axis.set_title(
            f"{prompt.label}: {prompt.tokens:,} tokens, {prompt.msr:.0%} of heads sparse, "
            f"{prompt.esr:.0%} of the attention skipped",
            loc="left",
            fontsize=9,
        )
        axis.set_yticks(range(heads))
        axis.set_ylabel("KV head", fontsize=8)
        axis.tick_params(labelsize=7)
    axes[-1].set_xlabel("layer (a dot marks a head that runs full attention)", fontsize=8)
    bar = figure.colorbar(image, ax=list(axes), fraction=0.03, pad=0.01)
    bar.set_label("probability of full attention", fontsize=8)
    bar.ax.tick_params(labelsize=7)
    return figure


def check_figure(path: str | Path) -> Path:
    """The path of a figure, if `save_figure` can write one there.

    Raises:
        ConfigError: an ending that stands for no format of pictures, or a place that cannot be written.
    """
    from matplotlib.figure import Figure

    path = Path(path).expanduser()
    formats = Figure().canvas.get_supported_filetypes()
    if path.suffix[1:].lower() not in formats:
        raise ConfigError(f"{path} has the ending {path.suffix!r}; want one of {', '.join(sorted(formats))}.")
    check_output(path)
    if path.exists() and not os.access(path, os.W_OK):
        raise ConfigError(f"{path} may not be written; choose another file.")
    return path


def save_figure(figure: Figure, path: str | Path) -> Path:
    """Writes the figure in the format of the file's ending, with its folder, and returns the path.

    Raises:
        ConfigError: see `check_figure`.
    """
    path = check_figure(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=140)
    return path
