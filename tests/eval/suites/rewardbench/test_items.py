from eval.suites.rewardbench.items import hashed_order, official_orders, ranks_from_scores


def test_official_orders_of_mixed_sizes():
    assert official_orders([2, 2, 3, 4, 2, 4, 3, 2]) == [
        (3, (1, 3, 2, 0)),
        (4, (0, 1)),
        (6, (1, 2, 0)),
        (7, (1, 0)),
        (2, (1, 2, 0)),
        (5, (1, 3, 2, 0)),
        (0, (0, 1)),
        (1, (1, 0)),
    ]


def test_hashed_orders_depend_on_record_and_seed_only_and_are_balanced():
    orders = {uid: hashed_order(uid, 2, 0) for uid in map(str, range(2000))}
    assert orders["17"] == hashed_order("17", 2, 0)
    assert any(hashed_order(uid, 2, 1) != order for uid, order in orders.items())
    assert 900 < sum(order == (0, 1) for order in orders.values()) < 1100
    assert sorted(hashed_order("x", 4, 0)) == [0, 1, 2, 3]


def test_scores_rank_with_ties_to_the_answer_shown_first():
    cases = {
        (0.3, 1.2): (1, 0),
        (0.5, 0.5): (0, 1),
        (0.1, 0.9, 0.4): (2, 0, 1),
        (2, 1, 2): (0, 2, 1),
        (3, 1, 2, 4): (1, 3, 2, 0),
    }
    assert {scores: ranks_from_scores(scores) for scores in cases} == cases
