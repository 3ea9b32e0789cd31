import json

import pytest

from eval.suites.rewardbench import page
from eval.suites.rewardbench.items import JudgeItem
from eval.suites.rewardbench.results import Judged, biases_of, swap_of


def item(uid, size=2, ranking=False, **axes):
    answers = ("a longer answer", "short", "c", "d")[:size]
    return JudgeItem(uid, "S", "q", answers, {"setting": "S", "length": "8k", **axes}, (), ranking)


def pair(uid, order, ranks, status="ok", shortened=False, **axes):
    return Judged(item(uid, **axes), order, ranks, status, shortened)


PAIRS = [
    pair("1", (0, 1), (0, 1)),
    pair("1", (1, 0), (1, 0)),
    pair("2", (1, 0), (0, 1), length="16k"),
    pair("2", (0, 1), (0, 1), length="16k", shortened=True),
    pair("3", (0, 1), None, "unparsed", length="16k"),
    pair("3", (1, 0), (1, 0), length="16k"),
]


def test_figures_of_pairs_in_both_orders():
    figures = page.judge_figures({"last": PAIRS, "other": PAIRS[:4]}, ("length",), "setting")
    everything = figures["all"]
    assert (everything["items"], everything["replies"], everything["shortened"]) == (3, 6, 1)
    assert everything["match"] == pytest.approx((1 + 0.5 + 0.5) / 3)
    assert everything["match_if_parsed"] == pytest.approx(4 / 5)
    assert everything["failed"] == {"unparsed": 1}
    assert figures["by"]["length"]["8k"]["match"] == 1 and figures["by"]["length"]["16k"]["items"] == 2
    assert figures["parsers"]["other"]["replies"] == 4
    assert figures["swap"]["all"] == {
        "n": 3,
        "both_right": 1,
        "both_wrong": 0,
        "flip_first": 1,
        "flip_second": 0,
        "unparsed": 1,
        "consistency": 1 / 3,
    }
    assert figures["swap"]["S"] == figures["swap"]["all"]
    assert figures["bias"]["first_position"] == pytest.approx(3 / 5 - 0.5)
    assert figures["bias"]["longer_answer"] == pytest.approx(4 / 5 - 0.5)
    assert json.loads(json.dumps(figures)) == figures


A, B = (0, 1), (1, 0)


def test_every_behaviour_under_swapped_answers_has_a_name():
    """Verdicts with the better answer shown first, then shown second."""
    verdicts = [(A, B), (A, B), (B, A), (A, A), (B, B), (B, B), (None, B), (A, None)]
    judged = [
        pair(str(n), order, ranks) for n, both in enumerate(verdicts) for order, ranks in zip((A, B), both, strict=True)
    ]
    swap = swap_of([*judged, pair("shown once", A, A)])
    assert swap is not None and list(swap.values()) == [8, 2, 1, 1, 2, 2, 3 / 8]
    assert swap_of(judged[::2]) is None


def test_leanings_of_a_judge_that_always_picks_the_first():
    judged = [pair("1", A, A), pair("1", B, A), pair("2", B, A), pair("3", B, None)]
    assert list(biases_of(judged).values()) == [0.5, pytest.approx(1 / 3 - 0.5), 1.0, 0.0]
    assert set(biases_of([]).values()) == {None}


def test_markdown_holds_every_figure():
    figures = page.judge_figures({"last": PAIRS, "other": PAIRS[:4]}, ("length",), "setting")
    text = page.figures_markdown(figures, "some judge")
    for row in (
        "## some judge: both orders",
        "| length | 16k | 2 | 50.0 (50.0–50.0) | 66.7 | 1 |",
        "| no verdict in the reply | 1 |",
        "| text cut out of the prompt (judged nevertheless) | 1 |",
        "| other | 75.0 | 75.0 | 0 |",
        "| all | 3 | 33.3 | 1 | 0 | 1 | 0 | 1 |",
        "| P(picks the answer shown first) - 50 | 10.0 |",
    ):
        assert row in text
    assert "Kendall" not in text


def test_rankings_get_their_own_columns_and_no_swap_table():
    judged = [
        Judged(item("1", 3, True), (2, 0, 1), (2, 1, 0), "ok", False),
        Judged(item("2", 3, True), (0, 1, 2), (0, 1, 2), "ok", False),
    ]
    figures = page.judge_figures({"last": judged}, (), "setting")
    assert figures["swap"] is None and figures["bias"] is None
    assert figures["all"]["kendall_tau_if_parsed"] == pytest.approx((1 / 3 + 1) / 2)
    text = page.figures_markdown(figures, "some judge")
    assert "| top-1, % | exact, % | reciprocal rank | Kendall tau |" in text
    assert "| 66.7 | 50.0 | 50.0 | 0.750 | 0.667 | 0 |" in text
