import pytest

from eval.harness.thinking import answer_of, opened_by, thinks_to_the_end, with_opening


@pytest.mark.parametrize(
    ("reply", "answer", "unfinished"),
    [
        ("Paris", "Paris", False),
        ("<think>London? No.</think>Paris", "Paris", False),
        ("London? No.</think>Paris", "Paris", False),
        ("<think>London</think> or <think>Rome</think>Paris", "Paris", False),
        ("<think>London, or", "", True),
        (" \n<think>a</think>\n<think>London", "\n", True),
        ("Paris <think>or London", "Paris ", False),
        ("[THINK]London[/THINK]Paris", "Paris", False),
        ("<thinking>London</thinking>Paris", "Paris", False),
        ("", "", False),
    ],
)
def test_only_what_follows_the_thinking_is_an_answer(reply, answer, unfinished):
    assert (answer_of(reply), thinks_to_the_end(reply)) == (answer, unfinished)


def test_a_tag_that_the_prompt_ends_with_belongs_to_the_reply():
    assert opened_by("user: hi\nassistant: <think>\n") == "<think>"
    assert opened_by("<think>\n\n</think>\n\n") == opened_by("what is <think> for?") == ""
    assert answer_of(with_opening("<think>", "London, or")) == ""
    assert with_opening("<think>", "<think>London") == "<think>London" and with_opening("", "Paris") == "Paris"
