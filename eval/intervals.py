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
