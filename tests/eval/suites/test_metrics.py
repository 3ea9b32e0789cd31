import pytest

from eval.suites.metrics import (
    chosen_letter,
    classification,
    cleaned,
    code_similarity,
    first_line,
    match_all,
    match_any,
    number_share,
    paragraph_share,
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
    ],
)
def test_token_f1(reply, reference, score):
    assert token_f1(reply, reference) == pytest.approx(score)


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
        ("Number of people on a Date", "Number of people", 0.5),
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
    ("reply", "letter"),
    [
        ("The correct answer is (B)", "B"),
        ("**The correct answer is (C)**.", "C"),
        ("the correct answer is D, because", "D"),
        ("The correct answer is Because", None),
        ("B", None),
        ("", None),
        ("<think>The correct answer is (A)? No.</think>The correct answer is (B).", "B"),
        ("<think>The correct answer is (A)", None),
        ("The correct answer is A. No: The correct answer is (B)", "B"),
    ],
)
def test_chosen_letter(reply, letter):
    assert chosen_letter(reply) == letter


def test_first_line():
    assert first_line("\n\nLOC\nQuestion: next") == "LOC"
    assert first_line("") == ""


@pytest.mark.parametrize(
    ("reply", "references", "all_of", "any_of"),
    [
        ("The numbers are 12 and 34.", ["12", "34"], 1, 1),
        ("Only 12.", ["12", "34"], 0.5, 1),
        ("none", ["12", "34"], 0, 0),
        ("", ["12"], 0, 0),
        ("PARIS, of course", ["paris"], 1, 1),
        ("<think>12? no.</think>The number is 34.", ["12"], 0, 0),
        ("<think>It could be 12 or 34, let me", ["12"], 0, 0),
        ("123456", ["34"], 1, 1),  # a part of a word is enough, as published
    ],
)
def test_references_are_looked_for_word_for_word(reply, references, all_of, any_of):
    assert match_all(reply, references) == all_of
    assert match_any(reply, references) == any_of


def test_control_characters_part_what_they_stand_between():
    assert cleaned(" \x00a\x07b\x1f ") == "a\nb"
    assert match_any("12\x0034", ["1234"]) == 0
