from itertools import permutations

import numpy as np
import pytest

from eval.suites.rewardbench.agreement import (
    A_BETTER,
    B_BETTER,
    exact_match,
    kendall_tau,
    rank_match,
    reciprocal_rank,
    top1,
)


@pytest.mark.parametrize(
    ("order", "ranks", "score"),
    [
        ((2, 0, 1), (2, 0, 1), 1),
        ((2, 0, 1), (2, 1, 0), 1 / 3),
        ((0, 1, 2), (0, 1), 2 / 3),
        ((0, 1, 2, 3), (0, 1, 3, 2), 0.5),
        ((0, 1, 2), (0, 1, 2, 3), 1),
        ((0, 1, 2), None, 0),
        ((1, 0), B_BETTER, 1),
        ((1, 0), A_BETTER, 0),
    ],
)
def test_rank_match(order, ranks, score):
    assert rank_match(order, ranks) == pytest.approx(score)


@pytest.mark.parametrize("n", [2, 3, 4])
def test_a_random_ranking_scores_one_in_n_and_exactly_right_one_in_n_factorial(n):
    rankings = list(permutations(range(n)))
    order = rankings[-1]
    mean = {metric: np.mean([metric(order, ranks) for ranks in rankings]) for metric in (rank_match, exact_match, top1)}
    assert mean[rank_match] == mean[top1] == pytest.approx(1 / n)
    assert mean[exact_match] == pytest.approx(1 / len(rankings))
    assert np.mean([kendall_tau(order, ranks) for ranks in rankings]) == pytest.approx(0)
    assert np.mean([reciprocal_rank(order, ranks) for ranks in rankings]) == pytest.approx(
        sum(1 / k for k in range(1, n + 1)) / n
    )


def test_kendall_tau_of_known_rankings():
    assert kendall_tau((2, 0, 1), (2, 0, 1)) == 1
    assert kendall_tau((0, 1, 2), (2, 1, 0)) == -1
    assert kendall_tau((0, 1, 2, 3), (0, 1, 3, 2)) == pytest.approx(4 / 6)


def test_no_verdict_scores_nothing():
    assert [metric((1, 0), None) for metric in (rank_match, exact_match, top1, reciprocal_rank)] == [0, 0, 0, 0]


def test_a_ranking_that_leaves_out_the_best_answer_did_not_find_it():
    assert (top1((1, 2, 0), (0, 1)), reciprocal_rank((1, 2, 0), (0, 1)), exact_match((1, 2, 0), (0, 1))) == (0, 0, 0)
    assert (top1((0, 1, 2), (0, 1)), reciprocal_rank((1, 0, 2), (0, 1))) == (1, 0.5)
