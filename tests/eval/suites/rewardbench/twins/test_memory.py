from collections import Counter
from functools import cache

import pytest
from judge_oracles import flaws

from elastic_jax.errors import DataError
from eval.suites.rewardbench.memory import DIALOGUE, GROUPS, REASONING, SETTINGS
from eval.suites.rewardbench.plans import memory_prompt
from eval.suites.rewardbench.twins import memory


def count_tokens(text: str) -> int:
    return len(text) // 4


@cache
def twin(pairs=4, lengths=(2048,), seed=0):
    return memory.make_items(pairs, lengths, seed, count_tokens)


def items():
    return [item for made in twin().values() for item in made]


def test_every_setting_is_there_and_uids_are_distinct():
    assert Counter(item.axes["setting"] for item in items()) == dict.fromkeys(SETTINGS, 4)
    assert list(twin()) == list(GROUPS)
    assert len({item.uid for item in items()}) == len(items())
    assert {item.axes["length"] for item in items()} == {"8k"}


def test_the_chosen_answer_has_no_flaw_and_the_rejected_one_has():
    for item in items():
        chosen, rejected = (flaws(item, answer) for answer in item.answers)
        assert chosen == 0 < rejected, item.uid


@pytest.mark.parametrize("name", [name for name, setting in SETTINGS.items() if setting.criterion != "constraint"])
def test_outcome_pairs_end_wrong_and_process_pairs_end_right(name):
    """A wrong end counts 100 flaws, everything else one each."""
    of_setting = [item for item in items() if item.axes["setting"] == name]
    ends_wrong = {flaws(item, item.answers[1]) >= 100 for item in of_setting}
    assert ends_wrong == {SETTINGS[name].criterion == "outcome"}


def test_patterns_show_in_the_texts():
    mixed = [item.answers[0] for item in items() if item.axes["pattern"] == "mixed"]
    assert all("Part 2:" in text and "Summary:" in text for text in mixed)
    sequential = [item for item in items() if item.axes["setting"] == "Sequential" and "city" not in item.question]
    parallel = [item for item in items() if item.axes["setting"] == "Parallel"]
    leads = ("Above floor", "As the section before", "From ")
    assert all(any(lead in item.answers[0] for lead in leads) for item in sequential)
    assert not any(any(lead in item.answers[0] for lead in leads) for item in parallel)
    assert all("Keywords:" in item.answers[0] for item in items() if item.axes["setting"].startswith("A-Mem"))


def test_damage_done_to_a_chosen_text_is_counted():
    """The checks of the tests see each kind of flaw on their own, not just the ones that the generator made."""
    for item in items():
        text = item.answers[0]
        if item.axes["group"] == REASONING:
            assert flaws(item, text.replace("\\boxed{", "\\boxed{no ")) >= 100
        elif item.axes["group"] == DIALOGUE:
            assert flaws(item, "") >= 100
        elif "From " not in text:
            assert flaws(item, text.replace(" a ", " no ").replace("years", "days")) > 0
        else:
            assert flaws(item, text.rpartition("\n")[0]) > 0


@pytest.mark.parametrize("length", [4096, 20_000])
def test_prompts_hit_their_length_and_its_label(length):
    for name in ("Mixed-Drop", "A-Mem-Out", "Sequential", "Parallel"):
        fields = memory.make_record(SETTINGS[name], length, f"test/{name}", count_tokens)
        prompt = memory_prompt(fields["question"], (fields["chosen"], fields["rejected"]), generation=False)
        tokens = count_tokens(prompt.before + prompt.context + prompt.after)
        assert 0.8 * length < tokens <= length, name
        assert fields["ctx_length"] == {4096: "8k", 20_000: "32k"}[length]


def test_records_depend_on_the_seed_and_on_nothing_else():
    again = memory.make_items(2, (2048,), 0, count_tokens)
    for group, made in again.items():
        uids = {item.uid for item in twin()[group]}
        assert {item.uid for item in made} <= uids
    other = memory.make_record(SETTINGS["Mem0-Out"], 2048, "1/x", count_tokens)
    assert other != memory.make_record(SETTINGS["Mem0-Out"], 2048, "0/x", count_tokens)


def test_a_length_too_short_is_refused():
    with pytest.raises(DataError, match="a record of 300 tokens is asked for, but its shortest form has"):
        memory.make_items(1, (300,), 0, count_tokens)
