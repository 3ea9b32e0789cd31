import math

import numpy as np
import pytest

from eval.intervals import paired_difference, ratio_interval, wilson_interval


@pytest.mark.parametrize(
    ("correct", "n", "low", "high"), [(0, 10, 0.0, 0.2775), (5, 10, 0.2366, 0.7634), (10, 10, 0.7225, 1.0)]
)
def test_wilson_interval_of_published_cases(correct, n, low, high):
    assert wilson_interval(correct, n) == pytest.approx((low, high), abs=1e-4)


def test_wilson_interval_covers_the_truth_as_often_as_it_says():
    rng = np.random.default_rng(0)
    for truth in (0.1, 0.5, 0.9):
        intervals = [wilson_interval(int(correct), 50) for correct in rng.binomial(50, truth, 2000)]
        assert 0.92 < np.mean([low <= truth <= high for low, high in intervals]) < 0.98


def test_paired_difference_ignores_what_both_share():
    shared = np.array([1.0, 5.0, 9.0])
    mean, error = paired_difference(shared + [0.1, 0.2, 0.3], shared)
    assert mean == pytest.approx(0.2)
    assert error == pytest.approx(0.1 / math.sqrt(3))
    assert paired_difference([2.0], [1.5]) == (0.5, 0.0)


def test_ratio_interval_holds_the_ratio_and_shrinks_with_n():
    rng = np.random.default_rng(1)
    baseline = rng.random(400) < 0.8
    kept = baseline & (rng.random(400) < 0.9)
    low, high = ratio_interval(kept, baseline)
    assert low < kept.sum() / baseline.sum() < high
    wide = ratio_interval(kept[:25], baseline[:25])
    assert high - low < wide[1] - wide[0]
    assert ratio_interval(kept, kept) == (1.0, 1.0)
    assert all(map(math.isnan, ratio_interval([1.0, 0.0], [0.0, 0.0])))
