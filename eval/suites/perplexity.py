"""Loss on running text: at the end of windows of prose and code, or by position in long windows."""

from __future__ import annotations

import math
import random
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from elastic_jax.plots import save_figure
from eval.harness.runner import Record
from eval.report.figures import colour
from eval.report.page import table
from eval.samples import Sample
from eval.suites.haystack import Haystack
from eval.tasks import Group, Task, likelihood_task


def perplexity_groups(
    lengths: Sequence[int], count: int, haystacks: Mapping[str, Haystack], *, scored_tokens: int, seed: int
) -> list[Group]:
    """`count` windows of every named kind of text at every length, of which the last `scored_tokens` are scored.

    Only late tokens are scored: the first ones of a window lose nothing to sparse attention, and the routers, which see
    the tokens before, must not see what is scored.
    """
    return window_groups(
        partial(likelihood_task, main_score="log_prob"),
        lengths,
        count,
        haystacks,
        seed=seed,
        prompt_tokens=lambda length: length - scored_tokens,
    )


def window_groups(
    task_named: Callable[[str], Task],
    lengths: Sequence[int],
    count: int,
    haystacks: Mapping[str, Haystack],
    *,
    seed: int,
    prompt_tokens: Callable[[int], int],
    scored_parts: int = 1,
) -> list[Group]:
    """`count` windows of every named kind of text at every length in tokens, cut into a prompt and what follows it.

    Args:
        task_named: makes the task that is asked, from the kind of text.
        prompt_tokens: tokens of the prompt in a window of this length.
        scored_parts: equal parts of what follows the prompt, each of which gets a score of its own.
    """

    def group(kind: str, length: int) -> Group:
        uids = [f"{kind}/{length}/{index}" for index in range(count)]

        def build(index: int) -> Sample:
            ids = haystacks[kind].window(random.Random(f"{seed}/{kind}/{length}/{index}"), length)
            first = prompt_tokens(length)
            fields = {"prompt_ids": ids[:first], "continuation_ids": ids[first:], "parts": scored_parts}
            return Sample(f"{kind}/{length}/{index}", fields, axes={"length": length})

        return Group(task_named(kind), uids, build, length)

    return [group(kind, length) for length in lengths for kind in haystacks]


def positions_section(records: Sequence[Record], out: Path) -> str:
    """Draws `positions.png` and returns the perplexity of each part of the windows as Markdown."""
    parts = sum(name.startswith("log_prob_") for name in records[0]["scores"])
    groups: dict[tuple[str, int, str], list[Record]] = defaultdict(list)
    for record in records:
        groups[record["task"], record["axes"]["length"], record["arm"]].append(record)
    losses = {
        key: [-float(np.mean([r["scores"][f"log_prob_{part}"] for r in found])) for part in range(parts)]
        for key, found in groups.items()
    }
    _draw_positions(losses, parts, out / "positions.png")
    body = [
        [task, f"{length:,}", arm, str(len(groups[task, length, arm])), *(f"{math.exp(loss):.2f}" for loss in found)]
        for (task, length, arm), found in losses.items()
    ]
    header = ["text", "length", "arm", "n", *(f"{part + 2} of {parts + 1}" for part in range(parts))]
    return (
        "## Perplexity by position\n\n![positions.png](positions.png)\n\nExp of the mean loss per token (nats) in each "
        "part of the windows; the routers decide from the first part, which is not scored.\n\n" + table(header, body)
    )


def _draw_positions(losses: Mapping[tuple[str, int, str], Sequence[float]], parts: int, path: Path) -> None:
    from matplotlib.figure import Figure

    panels = list(dict.fromkeys((task, length) for task, length, _ in losses))
    figure = Figure(figsize=(3.6 * len(panels), 3.2), layout="constrained")
    for axes, panel in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        arms = [arm for task, length, arm in losses if (task, length) == panel]
        for place, arm in enumerate(arms):
            middles = [panel[1] * (part + 1.5) / (parts + 1) for part in range(parts)]
            axes.plot(middles, losses[(*panel, arm)], "o-", color=colour(arm, place), label=arm)
        axes.set_title(f"{panel[0]}, {panel[1]:,} tokens", fontsize=9)
        axes.set_xlabel("position, tokens", fontsize=8)
        axes.set_ylabel("loss, nats per token", fontsize=8)
        axes.legend(fontsize=7)
    save_figure(figure, path)
