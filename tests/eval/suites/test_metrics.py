import pytest

from eval.suites.metrics import (
    chosen_letter,
    classification,
    code_similarity,
    edit_similarity,
    first_line,
    number_share,
    paragraph_share,
    rouge_l,
    token_f1,
)


@pytest.mark.parametrize(
    ("reply", "reference", "score"),
    [
        ("The cat!", "a cat", 1),
        ("cat dog", "cat", 2 / 3),
        ("cat cat", "cat", 2 / 3),
        ("bird", "cat", 0),
        ("", "cat", 0),
        ("", "", 0),
        ("北京市", "北京", 0.8),
    ],
)
def test_token_f1(reply, reference, score):
    assert token_f1(reply, reference) == pytest.approx(score)


@pytest.mark.parametrize(
    ("reply", "reference", "score"),
    [
        ("the cat sat on the mat", "the cat sat on the mat", 1),
        ("police killed the gunman", "police kill the gunman", 0.75),
        ("the gunman kill police", "police kill the gunman", 0.5),
        ("", "a", 0),
        ("会议总结", "会议的总结", 8 / 9),
    ],
)
def test_rouge_l(reply, reference, score):
    assert rouge_l(reply, reference) == pytest.approx(score)


def test_rouge_l_is_that_of_the_plain_table():
    import random

    rng = random.Random(0)
    for _ in range(50):
        a, b = ([rng.choice("xyz") for _ in range(rng.randrange(1, 90))] for _ in range(2))
        row = [0] * (len(b) + 1)
        for mark in a:
            row = [0] + _next(row, mark, b)
        assert rouge_l(" ".join(a), " ".join(b)) == pytest.approx(2 * row[-1] / (len(a) + len(b)))


def _next(row, mark, b):
    new = [0]
    for j, other in enumerate(b):
        new.append(row[j] + 1 if mark == other else max(row[j + 1], new[j]))
    return new[1:]


CLASSES = ["Number", "Number of people", "Place", "Date"]


@pytest.mark.parametrize(
    ("reply", "gold", "score"),
    [
        ("Type: Place", "Place", 1),
        ("Place or Date", "Place", 0.5),
        ("Number of people", "Number of people", 1),  # `Number` is only a part of the gold name
        ("Number", "Number of people", 0),
        ("Date", "Place", 0),
        ("", "Place", 0),
    ],
)
def test_classification(reply, gold, score):
    assert classification(reply, gold, CLASSES) == score


@pytest.mark.parametrize(
    ("reply", "gold", "score"),
    [("There are 7.", "7", 1), ("7, or 8, or 7", "7", 2 / 3), ("many", "7", 0), ("17", "7", 0)],
)
def test_numbers(reply, gold, score):
    assert number_share(reply, gold) == pytest.approx(score)
    assert paragraph_share(reply, f"Paragraph {gold}") == pytest.approx(score)
    assert paragraph_share(reply, f"段落{gold}") == pytest.approx(score)


def test_code_similarity_looks_at_the_first_line_of_code():
    reply = "\n```python\n# a comment\nreturn x + 1\nreturn y"
    assert code_similarity(reply, "return x + 1") == 1
    assert code_similarity("", "return") == 0
    assert code_similarity("# only a comment", "return") == 0


@pytest.mark.parametrize(
    ("a", "b", "score"),
    [("kitten", "sitting", 0.62), ("abc", "abc", 1), ("abc", "xyz", 0), ("", "", 1), ("abcd", "bd", 0.67)],
)
def test_edit_similarity(a, b, score):
    assert edit_similarity(a, b) == score


@pytest.mark.parametrize(
    ("reply", "letter"),
    [
        ("The correct answer is (B)", "B"),
        ("**The correct answer is (C)**.", "C"),
        ("the correct answer is D, because", "D"),
        ("The correct answer is Because", None),
        ("B", None),
        ("", None),
        ("The correct answer is A. No: The correct answer is (B)", "B"),
    ],
)
def test_chosen_letter(reply, letter):
    assert chosen_letter(reply) == letter


def test_first_line():
    assert first_line("\n\nLOC\nQuestion: next") == "LOC"
    assert first_line("") == ""
