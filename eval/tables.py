"""Figures of a benchmark report: records grouped by task, axes and arm."""

from __future__ import annotations

import math
import statistics
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from eval.intervals import mean_interval
from eval.runner import Record

ALL_TASKS = "mean of tasks"
_MEANS = ("msr", "esr", "esr_last_layer", "cache_bytes")
_TIMES = ("prefill_s", "decode_s", "seconds")

Row = dict[str, Any]


def summarise(records: Iterable[Record], axes: Sequence[str] = ()) -> list[Row]:
    """One row per task, axis values and arm, in the order of their first record.

    A row holds n (samples), score (mean of the task's main score over all samples, those too long or unparsed
    included), interval (95 %), and the means of MSR, ESR and cache bytes and medians of times (seconds per reply) where
    the backend measured them. In n, score and interval a sample counts once, with the mean over its showings; each
    status, cut prompts and answers that ran out of room are counted by reply.
    """
    groups: dict[tuple, list[Record]] = defaultdict(list)
    for record in records:
        groups[(record["task"], *(record["axes"].get(axis) for axis in axes), record["arm"])].append(record)
    return [_row(key, axes, members) for key, members in groups.items()]


def _row(key: tuple, axes: Sequence[str], members: Sequence[Record]) -> Row:
    task, *values, arm = key
    by_uid: dict[str, list[float]] = defaultdict(list)
    for record in members:
        by_uid[record["uid"]].append(record["scores"].get(record["main"], 0.0))
    scores = [statistics.fmean(shown) for shown in by_uid.values()]
    row: Row = {"task": task} | dict(zip(axes, values, strict=True)) | {"arm": arm, "n": len(scores)}
    row |= {"score": statistics.fmean(scores), "interval": list(mean_interval(scores))}
    row |= dict(Counter(record["status"] for record in members))
    row |= {
        "cut": sum(record["cut_tokens"] > 0 for record in members),
        "out_of_room": sum(record["finish"] == "length" for record in members),
    }
    for names, reduce in ((_MEANS, statistics.fmean), (_TIMES, statistics.median)):
        for name in names:
            found = [record["numbers"][name] for record in members if name in record["numbers"]]
            if found:
                row[name] = reduce(found)
    return row


def means_over_tasks(rows: Sequence[Row], axes: Sequence[str] = ()) -> list[Row]:
    """Per axis values and arm the plain mean of the tasks' scores, with an interval from their standard errors.

    Only where there is more than one task.
    """
    groups: dict[tuple, list[Row]] = defaultdict(list)
    for row in rows:
        groups[(*(row[axis] for axis in axes), row["arm"])].append(row)
    means = []
    for (*values, arm), members in groups.items():
        if len(members) < 2:
            continue
        score = statistics.fmean(row["score"] for row in members)
        errors = [(row["interval"][1] - row["interval"][0]) / 2 for row in members]
        half = math.hypot(*errors) / len(members)
        mean: Row = {"task": ALL_TASKS} | dict(zip(axes, values, strict=True))
        mean |= {"arm": arm, "n": sum(row["n"] for row in members), "tasks": len(members), "score": score}
        mean |= {"interval": [max(0.0, score - half), min(1.0, score + half)]}
        for name in (*_MEANS, *_TIMES):
            if all(name in row for row in members):
                mean[name] = statistics.fmean(row[name] for row in members)
        means.append(mean)
    return means


def time_ratios(rows: Sequence[Row], baseline: str) -> dict[tuple, float]:
    """Time of an arm over that of the baseline arm, by (task, axis values ..., arm) as `row_key` gives it."""
    seconds = {row_key(row): row["prefill_s"] + row.get("decode_s", 0.0) for row in rows if "prefill_s" in row}
    ratios = {}
    for key, value in seconds.items():
        base = seconds.get((*key[:-1], baseline))
        if base:
            ratios[key] = value / base
    return ratios


def row_key(row: Mapping[str, Any]) -> tuple:
    """What a row is about, the arm last."""
    about = [value for name, value in row.items() if name in ("task", *_axes_of(row))]
    return (*about, row["arm"])


def _axes_of(row: Mapping[str, Any]) -> list[str]:
    names = list(row)
    return names[1 : names.index("arm")]
