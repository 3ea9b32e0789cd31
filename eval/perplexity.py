"""Loss on running text: the last tokens of windows of prose and code, scored after everything before them."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence

from eval.haystack import Haystack
from eval.runner import Group
from eval.scoring import Sample


def perplexity_groups(
    lengths: Sequence[int], count: int, haystacks: Mapping[str, Haystack], *, scored_tokens: int, seed: int
) -> list[Group]:
    """`count` windows of every named kind of text at every length, of which the last `scored_tokens` are scored.

    Only late tokens are scored because the first ones of a window lose nothing to sparse attention, and so that the
    routers, which see the tokens before, never see what is scored.
    """

    def group(kind: str, length: int) -> Group:
        def build(index: int) -> Sample:
            rng = random.Random(f"{seed}/{kind}/{length}/{index}")
            ids = haystacks[kind].window(rng, length)
            return Sample(f"{kind}/{length}/{index}", ids[:-scored_tokens], ids[-scored_tokens:])

        return Group(kind, length, scored_tokens, count, build)

    return [group(kind, length) for length in lengths for kind in haystacks]
