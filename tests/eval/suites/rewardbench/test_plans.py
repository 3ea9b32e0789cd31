import pytest

from eval.suites.rewardbench.plans import memory_prompt


@pytest.mark.parametrize("generation", [False, True])
def test_memory_judges_are_asked_for_the_verdict_first(generation):
    prompt = memory_prompt("What?", ["one", "two"], generation=generation)
    assert "Start your reply with the verdict" in prompt.system and "[[A]]" in prompt.system
    assert (
        prompt.after.index("one")
        < prompt.after.index("[The Start of Agent B's Trajectory]")
        < prompt.after.index("two")
    )
    assert ("requirement" in prompt.system) == generation
    assert prompt.template == ("memory-generation@1" if generation else "memory-understanding@1")
