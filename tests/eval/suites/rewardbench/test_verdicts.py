import pytest

from eval.suites.rewardbench import agreement
from eval.suites.rewardbench.agreement import A_BETTER, B_BETTER


@pytest.mark.parametrize(
    ("reply", "ranks"),
    [
        ("The first is better. [[A]]", A_BETTER),
        ("[[B]]", B_BETTER),
        ("I must say [[A]] or [[B]]. My verdict: [[B]]", A_BETTER),
        *((reply, None) for reply in ("[A]", "[[C]]", "[[ A ]]", "[[a]]", "")),
    ],
)
def test_official_pair(reply, ranks):
    assert agreement.official_pair(reply) == ranks


@pytest.mark.parametrize(
    ("reply", "ranks"),
    [
        ("[[B>A>C]]", (1, 0, 2)),
        ("[[Assistant B > Assistant A > Assistant C]]", (1, 0, 2)),
        ("[[B > D > A > C]]", (2, 0, 3, 1)),
        ("[[D>A>B>C]]", (1, 2, 3, 0)),
        ("The form is [[A>B>C]]. [Ranking] [[C>B>A]]", (0, 1, 2)),
        ("[B>A]", (1, 0)),
        ("[[B>A>C>D]]", (1, 0, 2, 3)),
        ("[[B>A>A]]", None),
        ("[[A>C]]", None),
        ("[[1>2>3]]", None),
        ("((B, A, C", None),
        ("[[B>A>C", None),
        ("[[B>A=C]]", None),
        ("[[B\n>A]]", None),
        ("[[b>a]]", None),
        ("see [x > y], so [[B>A]]", None),
        ("> > > > > > > > > [[B>A]]", None),
    ],
)
def test_official_ranking(reply, ranks):
    assert agreement.official_ranking(reply) == ranks


@pytest.mark.parametrize(
    ("reply", "strict5", "first", "last", "anywhere"),
    [
        ("[[A]] because it is cleaner", A_BETTER, A_BETTER, A_BETTER, A_BETTER),
        ("After a look at both, [[B]]", None, B_BETTER, B_BETTER, B_BETTER),
        ("[[A]] vs [[B]]: in the end [[B]]", A_BETTER, A_BETTER, B_BETTER, A_BETTER),
        ("<think>[[A]]</think>[[B]]", None, B_BETTER, B_BETTER, A_BETTER),
        ("thinking of [[A]]</think>[[B]]", None, B_BETTER, B_BETTER, A_BETTER),
        ("<think>[[A]] and no end", None, None, None, A_BETTER),
        ("\n[[A]]", None, A_BETTER, A_BETTER, A_BETTER),
        ("", None, None, None, None),
    ],
)
def test_tags(reply, strict5, first, last, anywhere):
    assert agreement.strict5(reply) == strict5
    assert agreement.first_tag(reply) == first
    assert agreement.last_tag(reply) == last
    assert agreement.official_pair(reply) == anywhere


@pytest.mark.parametrize(
    ("reply", "ranks"),
    [
        ('{"winner": "B"}', B_BETTER),
        ("Agent A fails once. The better agent is B.", B_BETTER),
        ("**Verdict:** A", A_BETTER),
        ("The winner is A. [[B]]", B_BETTER),
        ("Agent A and Agent B both did well.", None),
        ("B is better than A", None),
        ("The best is a map", None),
        ("<think>The winner is A</think>", None),
    ],
)
def test_label_words_are_read_where_there_is_no_tag(reply, ranks):
    assert agreement.last_label(reply) == ranks


@pytest.mark.parametrize(
    ("reply", "size", "ranks"),
    [
        ("The form is [[A>B>C]]. [Ranking] [[C>B>A]]", 3, (2, 1, 0)),
        ("[[Assistant B > Assistant A]]", 2, (1, 0)),
        ("a > b > c > d > e > f > g > h > i > j [[B>A]]", 2, (1, 0)),
        ("[[B>A>C>D]]", 3, None),
        ("[[A>C]]", 3, None),
        ("[[B>A]] [[A>B>B]]", 2, None),
        ("[B>A]", 2, None),
        ("<think>[[B>A]]</think> no idea", 2, None),
        ("", 2, None),
    ],
)
def test_last_ranking_takes_whole_permutations_only(reply, size, ranks):
    assert agreement.last_ranking(reply, size) == ranks
