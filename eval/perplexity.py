"""Loss on running text: the last tokens of windows of prose and code, scored after everything before them."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence

from eval.haystack import Haystack
from eval.samples import Sample
from eval.tasks import Group
from eval.token_tasks import likelihood_task


def perplexity_groups(
    lengths: Sequence[int], count: int, haystacks: Mapping[str, Haystack], *, scored_tokens: int, seed: int
) -> list[Group]:
    """`count` windows of every named kind of text at every length, of which the last `scored_tokens` are scored.

    Only late tokens are scored because the first ones of a window lose nothing to sparse attention, and so that the
    routers, which see the tokens before, never see what is scored.
    """

    def group(kind: str, length: int) -> Group:
        task = likelihood_task(kind, main_score="log_prob")

        def build(index: int) -> Sample:
            rng = random.Random(f"{seed}/{kind}/{length}/{index}")
            ids = haystacks[kind].window(rng, length)
            fields = {"prompt_ids": ids[:-scored_tokens], "continuation_ids": ids[-scored_tokens:]}
            return Sample(f"{kind}/{length}/{index}", fields, axes={"length": length})

        return Group(task, [f"{kind}/{length}/{index}" for index in range(count)], build, length)

    return [group(kind, length) for length in lengths for kind in haystacks]
