import math

import numpy as np
import pytest

from eval.report.tables import (
    bootstrap_mean,
    mean_interval,
    paired_difference,
    ratio_interval,
    sign_test,
    wilson_interval,
)


@pytest.mark.parametrize(
    ("correct", "n", "low", "high"), [(0, 10, 0.0, 0.2775), (5, 10, 0.2366, 0.7634), (10, 10, 0.7225, 1.0)]
)
def test_wilson_interval_of_published_cases(correct, n, low, high):
    assert wilson_interval(correct, n) == pytest.approx((low, high), abs=1e-4)


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


def test_mean_interval_is_wilsons_for_shares_and_holds_the_mean_otherwise():
    assert mean_interval([1, 0, 1, 1]) == wilson_interval(3, 4)
    values = np.random.default_rng(0).random(60)
    low, high = mean_interval(values)
    assert low < values.mean() < high
    error = values.std() / math.sqrt(60)
    assert high - low == pytest.approx(2 * 1.96 * error, rel=0.1)
    assert mean_interval([0.25]) == (0.25, 0.25)


@pytest.mark.parametrize(("better", "worse", "p"), [(0, 0, 1), (3, 3, 1), (8, 0, 2 / 256), (1, 5, 14 / 64)])
def test_sign_test_of_hand_counted_cases(better, worse, p):
    assert sign_test(better, worse) == pytest.approx(p)
    assert sign_test(worse, better) == pytest.approx(p)


def test_many_values_have_the_interval_that_a_bootstrap_would_give():
    values = np.random.default_rng(0).random(2001)
    assert bootstrap_mean(values) == pytest.approx(bootstrap_mean(values[:2000]), abs=0.003)
