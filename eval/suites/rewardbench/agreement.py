"""Parsers that read a judge's verdict out of its reply, and scores of a verdict against the true ranking.

A verdict is the rank (0 = best) that the judge gives to the answer at each position. Every parser returns None when it
finds none. The `official_*` parsers reproduce the published evaluators, slips included; the others read as a careful
reader would.
"""

from __future__ import annotations

import re
from itertools import combinations

from eval.harness.thinking import answer_of
from eval.suites.rewardbench.items import Order

type Ranks = tuple[int, ...]

A_BETTER, B_BETTER = (0, 1), (1, 0)

_TAG = re.compile(r"\[\[([AB])\]\]")
_RANKING = re.compile(r"\[[\w\s]+(?:>[\w\s]+)+\]")
_STRICT_RANKING = re.compile(r"\[\[\s*((?:Assistant\s+)?[A-Z](?:\s*>\s*(?:Assistant\s+)?[A-Z])+)\s*\]\]")
_WHO = "(?:agent|assistant|answer|trajectory|one)"
_NAMED = rf"\b(?:better|best|winner|verdict|choice|preferred|chosen)\b(?:\W+{_WHO})?\W*(?::|\bis\b)\W*(?:{_WHO}\s+)?"
_LABEL = re.compile(rf"(?i:{_NAMED})([AB])\b")
_MANY_ARROWS = 10


def official_pair(reply: str) -> Ranks | None:
    """Long-RewardBench: `[[A]]` anywhere means A, even if `[[B]]` follows; else `[[B]]` anywhere means B."""
    if "[[A]]" in reply:
        return A_BETTER
    return B_BETTER if "[[B]]" in reply else None


def official_ranking(reply: str) -> Ranks | None:
    """Long-RewardBench: the first bracketed `X>Y>...`, of any length; ten `>` or more count as no verdict."""
    if reply.count(">") >= _MANY_ARROWS:
        return None
    found = _RANKING.search(reply)
    if found is None:
        return None
    pieces = [re.sub("assistant|Assistant|:| ", "", piece) for piece in found.group().strip("[]").split(">")]
    return _positions("".join(pieces)) if all(len(piece) == 1 for piece in pieces) else None


def strict5(reply: str) -> Ranks | None:
    """MemoryRewardBench's official rule: the first five characters of the reply are the tag."""
    return official_pair("\n".join(reply.split("\n")[:5])[:5])


def first_tag(reply: str) -> Ranks | None:
    """The first `[[A]]` or `[[B]]` after the thinking."""
    found = _TAG.search(answer_of(reply))
    return None if found is None else _of_letter(found.group(1))


def last_tag(reply: str) -> Ranks | None:
    """The last `[[A]]` or `[[B]]` after the thinking."""
    found = _TAG.findall(answer_of(reply))
    return _of_letter(found[-1]) if found else None


def last_label(reply: str) -> Ranks | None:
    """The last tag, or else the last A or B that a word names: `the winner is B`, `"choice": "A"`."""
    tagged = last_tag(reply)
    if tagged is not None:
        return tagged
    found = _LABEL.findall(answer_of(reply))
    return _of_letter(found[-1]) if found else None


def last_ranking(reply: str, size: int) -> Ranks | None:
    """The last `[[X>Y>...]]` after the thinking, if it ranks each of the `size` answers once."""
    found = _STRICT_RANKING.findall(answer_of(reply))
    if not found:
        return None
    letters = re.sub(r"Assistant|\s|>", "", found[-1])
    return _positions(letters) if len(letters) == size else None


def _of_letter(letter: str) -> Ranks:
    return A_BETTER if letter == "A" else B_BETTER


def _positions(letters: str) -> Ranks | None:
    """The places of A, B, ... in the ranking; None if one of them is missing."""
    places = [letters.find(chr(ord("A") + answer)) for answer in range(len(letters))]
    return None if -1 in places else tuple(places)


def rank_match(order: Order, ranks: Ranks | None) -> float:
    """Share of answers that got their true rank: the official score of both benchmarks (plain accuracy for a pair).

    A random ranking of N answers scores 1/N. No verdict scores 0; a ranking that is too short or too long is compared
    where both have an entry, and still divided by N.
    """
    if ranks is None:
        return 0.0
    return sum(true == given for true, given in zip(order, ranks, strict=False)) / len(order)


def exact_match(order: Order, ranks: Ranks | None) -> float:
    """1 for the true ranking as a whole; a random ranking scores 1/N!."""
    return float(ranks == order)


def top1(order: Order, ranks: Ranks | None) -> float:
    """1 if the best answer is ranked first."""
    return float(_place_of_best(order, ranks) == 0)


def reciprocal_rank(order: Order, ranks: Ranks | None) -> float:
    """1 / place given to the best answer; 0 without a verdict on it."""
    place = _place_of_best(order, ranks)
    return 0.0 if place is None else 1 / (1 + place)


def kendall_tau(order: Order, ranks: Ranks) -> float:
    """(concordant - discordant) / pairs of answers, of a whole ranking: 1 if true, -1 if reversed."""
    agreements = [
        1 if (order[i] < order[j]) == (ranks[i] < ranks[j]) else -1 for i, j in combinations(range(len(order)), 2)
    ]
    return sum(agreements) / len(agreements)


def _place_of_best(order: Order, ranks: Ranks | None) -> int | None:
    shown_at = order.index(0)
    return ranks[shown_at] if ranks is not None and shown_at < len(ranks) else None
