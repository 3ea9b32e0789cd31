"""Records of the reward benchmarks: a question, answers whose true ranking is known, and orders to show them in."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

OFFICIAL_SEED = 42

type Order = tuple[int, ...]
"""True rank (0 = best) of the answer shown at each position."""


@dataclass(frozen=True)
class JudgeItem:
    """One record of a reward benchmark."""

    uid: str
    """Stable name of the record: a digest of its content."""
    task: str
    """The task under which the report counts it."""
    question: str
    """Everything that the judge reads before the answers, the long context included."""
    answers: tuple[str, ...]
    """Best first."""
    axes: Mapping[str, str]
    """What results are grouped by: task, length, setting and so on."""
    conversation: tuple[Mapping[str, str], ...]
    """Messages (role, content) that the answers continue, for scalar reward models."""
    ranking: bool = False
    """The judge is asked for a ranking of all answers, not for a verdict on two."""


def distinct(items: Sequence[JudgeItem]) -> list[JudgeItem]:
    """The same items, with different uids for those of equal content."""
    seen: Counter[str] = Counter()
    renamed = []
    for item in items:
        seen[item.uid] += 1
        renamed.append(item if seen[item.uid] == 1 else replace(item, uid=f"{item.uid}-{seen[item.uid]}"))
    return renamed


def length_bucket(tokens: int, labels: Sequence[str]) -> str:
    """The first of the rising labels (`8k` is 8,192 tokens) that is not exceeded; beyond the last, it and a `+`."""
    fitting = (label for label in labels if tokens <= 1024 * int(label.removesuffix("k")))
    return next(fitting, f"{labels[-1]}+")


def official_orders(sizes: Sequence[int], seed: int = OFFICIAL_SEED) -> list[tuple[int, Order]]:
    """Visiting order and answer orders of the official evaluators, for the records of one file.

    Both evaluators seed CPython's generator once per file, shuffle the records, and then shuffle the answers of each
    record in the shuffled order; so the orders depend on how many records the file has and how many answers each.

    Args:
        sizes: answers of every record, in file order.

    Returns:
        `(position in the file, order)` in visiting order.
    """
    rng = random.Random(seed)
    visits = list(range(len(sizes)))
    rng.shuffle(visits)
    drawn = []
    for index in visits:
        order = list(range(sizes[index]))
        rng.shuffle(order)
        drawn.append((index, tuple(order)))
    return drawn


def hashed_order(uid: str, size: int, seed: int) -> Order:
    """An order that depends on the record and the seed only: no limit, shard or restart changes it."""
    order = list(range(size))
    random.Random(f"{seed}/{uid}").shuffle(order)
    return tuple(order)


def ranks_from_scores(scores: Sequence[float]) -> tuple[int, ...]:
    """Rank (0 = highest score) of every answer; of answers with equal scores the one shown first ranks higher."""
    by_score = sorted(range(len(scores)), key=lambda position: -scores[position])
    return tuple(by_score.index(position) for position in range(len(scores)))
