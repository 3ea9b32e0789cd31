import pytest

from eval.suites.metrics import cleaned, match_all, match_any


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
