"""Intervals for the figures of a report."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike


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
