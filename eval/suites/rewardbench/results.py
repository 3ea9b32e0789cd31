"""Computes the figures of a report from the journal records of judged items."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from eval.report.tables import mean_interval
from eval.suites.rewardbench.agreement import (
    Ranks,
    exact_match,
    kendall_tau,
    rank_match,
    reciprocal_rank,
    top1,
)
from eval.suites.rewardbench.asking import OFFICIAL_KEPT
from eval.suites.rewardbench.items import JudgeItem, Order, ranks_from_scores


@dataclass(frozen=True)
class Judged:
    """One reply of a judge (for rewards: those to all answers of an item), read by one parser."""

    item: JudgeItem
    order: Order
    ranks: Ranks | None
    status: str
    """ok, or why there is no verdict: empty, unparsed, stopped (cut off, or still thinking), too_long (never shown)."""
    shortened: bool
    """Part of the text was cut out of the prompt."""

    @property
    def match(self) -> float:
        return rank_match(self.order, self.ranks)


def read_verdicts(items: Mapping[str, JudgeItem], records: Iterable[Mapping[str, Any]], parser: str) -> list[Judged]:
    """The verdicts that one parser finds in the records of written verdicts or choices, by item uid."""
    judged = []
    for record in records:
        found = (record["parsed"] or {}).get(parser)
        ranks = None if found is None else tuple(found)
        status = record["status"]
        if status == "unfinished":
            status = "stopped"
        elif status in ("ok", "unparsed"):  # as the parser of the score found; this parser may be another one
            status = "ok" if ranks else "stopped" if record["finish"] == "length" else "unparsed"
        order = tuple(record["showing"]["order"])
        shortened = record["cut_tokens"] > 0 or record["prompt_tokens"] == OFFICIAL_KEPT
        judged.append(Judged(items[record["uid"]], order, ranks, status, shortened))
    return judged


def join_rewards(records: Iterable[Mapping[str, Any]], orders: Mapping[str, Order]) -> list[dict[str, Any]]:
    """Joins the records of the answers of each item and arm to one: their ranking by reward, as parser `reward`.

    Items of which an answer has no record yet are left out: the run is not finished.

    Args:
        orders: the order in which the answers count as shown, by uid; it decides between equal rewards.
    """
    answers: dict[tuple[str, str], dict[int, Mapping[str, Any]]] = defaultdict(dict)
    for record in records:
        answers[record["uid"], record["arm"]][record["showing"]["order"][0]] = record
    joined = []
    for (uid, _), by_rank in answers.items():
        order = orders[uid]
        if len(by_rank) < len(order):
            continue
        shown = [by_rank[rank] for rank in order]
        too_long = any(record["status"] == "too_long" for record in shown)
        ranks = None if too_long else ranks_from_scores([record["scores"]["reward"] for record in shown])
        joined.append(
            {
                **shown[0],
                "showing": {"label": "rewards", "order": order, "repeat": 0},
                "status": "too_long" if too_long else "ok",
                "main": "match",
                "scores": {"match": rank_match(order, ranks)},
                "parsed": {"reward": ranks},
                "cut_tokens": max(record["cut_tokens"] for record in shown),
            }
        )
    return joined


def summary(judged: Sequence[Judged]) -> dict[str, Any]:
    """Figures of a set of verdicts; each item counts once, with the mean over the orders in which it was shown."""
    parsed = [one for one in judged if one.ranks is not None]
    whole = [one for one in parsed if sorted(one.ranks or ()) == sorted(one.order)]
    statuses = Counter(one.status for one in judged)
    matches = _by_item(judged, lambda one: one.match)
    return {
        "items": len(matches),
        "replies": len(judged),
        "match": _mean(matches),
        "interval": list(mean_interval(matches)),
        "match_if_parsed": _mean([one.match for one in parsed]),
        "top1": _mean(_by_item(judged, lambda one: top1(one.order, one.ranks))),
        "exact": _mean(_by_item(judged, lambda one: exact_match(one.order, one.ranks))),
        "reciprocal_rank": _mean(_by_item(judged, lambda one: reciprocal_rank(one.order, one.ranks))),
        "kendall_tau_if_parsed": _mean([kendall_tau(one.order, one.ranks or ()) for one in whole]),
        "failed": {status: count for status, count in sorted(statuses.items()) if status != "ok"},
        "shortened": sum(one.shortened for one in judged),
    }


def official_results(judged: Sequence[Judged]) -> list[tuple[Mapping[str, str], float]]:
    """Axes and score of every item, for the official tables; the scores of several orders are averaged."""
    by_uid: dict[str, list[Judged]] = defaultdict(list)
    for one in judged:
        by_uid[one.item.uid].append(one)
    return [(group[0].item.axes, sum(one.match for one in group) / len(group)) for group in by_uid.values()]


def swap_of(judged: Sequence[Judged]) -> dict[str, float] | None:
    """How verdicts on pairs change when the two answers change places; None if no pair was shown in both orders.

    Counts of pairs: `both_right`, `both_wrong`, `flip_first` and `flip_second` (whichever answer was shown first, or
    second, was chosen), `unparsed` (at least one of the two replies held no verdict), and `n` of all. `consistency` is
    the share of pairs where both verdicts choose the same answer, right or wrong.
    """
    both: dict[str, dict[int, Ranks | None]] = defaultdict(dict)
    for one in judged:
        if not one.item.ranking:
            both[one.item.uid][one.order.index(0)] = one.ranks
    names = {(0, 1): "both_right", (1, 0): "both_wrong", (0, 0): "flip_first", (1, 1): "flip_second"}
    counts = dict.fromkeys((*names.values(), "unparsed"), 0)
    for ranks in both.values():
        if len(ranks) == 2:
            better_first, better_second = ranks[0], ranks[1]
            if better_first is None or better_second is None:
                counts["unparsed"] += 1
            else:  # index(0) is the position of the answer that the judge chose
                counts[names[better_first.index(0), better_second.index(0)]] += 1
    n = sum(counts.values())
    return {"n": n, **counts, "consistency": (counts["both_right"] + counts["both_wrong"]) / n} if n else None


def biases_of(judged: Sequence[Judged]) -> dict[str, float | None]:
    """Biases of a judge over its replies on pairs that hold a verdict; None where there is no such reply.

    `first_position` and `longer_answer` (over pairs of unequal length) are the share of replies that choose this answer
    less one half; the accuracies are those over replies where the better answer was shown first, and second.
    """
    first, longer = [], []
    right: tuple[list[bool], list[bool]] = ([], [])
    for one in judged:
        if one.item.ranking or one.ranks is None:
            continue
        chosen, lengths = one.ranks.index(0), [len(one.item.answers[rank]) for rank in one.order]
        first.append(chosen == 0)
        if len(set(lengths)) > 1:
            longer.append(lengths[chosen] == max(lengths))
        better = one.order.index(0)
        right[better].append(chosen == better)
    return {
        "first_position": _mean([hit - 0.5 for hit in first]),
        "longer_answer": _mean([hit - 0.5 for hit in longer]),
        "accuracy_better_first": _mean(right[0]),
        "accuracy_better_second": _mean(right[1]),
    }


def _by_item(judged: Sequence[Judged], value: Callable[[Judged], float]) -> list[float]:
    by_uid: dict[str, list[float]] = defaultdict(list)
    for one in judged:
        by_uid[one.item.uid].append(value(one))
    return [sum(values) / len(values) for values in by_uid.values()]


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
