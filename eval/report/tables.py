"""Figures of a benchmark report: records grouped by task, axes and arm.

Intervals for the figures of a report.
"""

from __future__ import annotations

import math
import statistics
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from eval.harness.runner import Record


def wilson_interval(correct: int, n: int, z: float = 1.96) -> tuple[float, float]:
    """95 % score interval of a share, which stays inside [0, 1] and is honest at 0 and 1 and for small n."""
    share, spread = correct / n, z * z / n
    middle = (share + spread / 2) / (1 + spread)
    half = z * math.sqrt(share * (1 - share) / n + spread / (4 * n)) / (1 + spread)
    return max(0.0, middle - half), min(1.0, middle + half)


def paired_difference(values: ArrayLike, baseline: ArrayLike) -> tuple[float, float]:
    """Mean of value - baseline over the same samples, and its standard error (0 for a single sample)."""
    difference = np.subtract(values, baseline)
    error = difference.std(ddof=1) / math.sqrt(len(difference)) if len(difference) > 1 else 0.0
    return float(difference.mean()), float(error)


def ratio_interval(values: ArrayLike, baseline: ArrayLike, *, draws: int = 4000) -> tuple[float, float]:
    """95 % interval of sum(values) / sum(baseline) over the same samples, by a seeded bootstrap of the samples.

    Draws whose baseline sums to zero say nothing and are left out; `(nan, nan)` if all do.
    """
    pairs = np.stack([values, baseline], axis=1)
    rng = np.random.default_rng(0)
    totals = pairs[rng.integers(len(pairs), size=(draws, len(pairs)))].sum(axis=1)
    totals = totals[totals[:, 1] != 0]
    if not len(totals):
        return math.nan, math.nan
    low, high = np.quantile(totals[:, 0] / totals[:, 1], [0.025, 0.975])
    return float(low), float(high)


def mean_interval(values: ArrayLike) -> tuple[float, float]:
    """95 % interval of a mean: Wilson's for values that are all 0 or 1, else by bootstrap."""
    array = np.asarray(values, float)
    if np.isin(array, (0.0, 1.0)).all():
        return wilson_interval(int(array.sum()), len(array))
    return bootstrap_mean(array)


def bootstrap_mean(values: ArrayLike, *, draws: int = 2000) -> tuple[float, float]:
    """95 % interval of a mean by a seeded bootstrap, or by its standard error for more than 2,000 values."""
    array = np.asarray(values, float)
    if len(array) > 2000:
        half = 1.96 * array.std(ddof=1) / math.sqrt(len(array))
        return float(array.mean() - half), float(array.mean() + half)
    rng = np.random.default_rng(0)
    means = array[rng.integers(len(array), size=(draws, len(array)))].mean(axis=1)
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)


def sign_test(better: int, worse: int) -> float:
    """Two-sided exact probability of so uneven a split if both were as likely (McNemar's test on discordant pairs)."""
    n = better + worse
    if n == 0:
        return 1.0
    tail = sum(math.comb(n, k) for k in range(min(better, worse) + 1)) / 2**n
    return min(1.0, 2 * tail)


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


OVERALL = "overall"


def overall_rows(records: Sequence[Record], axes: Sequence[str]) -> list[Row]:
    """A row per arm over all samples, and one per arm and value of each axis over those with this value.

    A row has None for the axes over which it counts; samples weigh alike.
    """
    rows = []
    alike = [record | {"task": OVERALL} for record in records]
    for kept in ((), *((axis,) for axis in axes)):
        for row in summarise(alike, kept):
            about = {name: row.pop(name, None) for name in ("task", *axes)}
            rows.append(about | row)
    return rows


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
