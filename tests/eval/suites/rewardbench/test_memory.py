import json

import pytest

from elastic_jax.errors import DataError
from eval.suites.rewardbench.items import JudgeItem, length_bucket
from eval.suites.rewardbench.memory import (
    DIALOGUE,
    GENERATION,
    GROUPS,
    LENGTHS,
    REASONING,
    SETTINGS,
    official_table,
    read_folder,
    setting_of,
)
from eval.suites.rewardbench.page import judge_figures
from eval.suites.rewardbench.results import Judged

SIX = {
    "question": "Long text.\n[Question]How many objects is Ana carrying?",
    "chosen": "Step 1: ... \\boxed{none}",
    "rejected": "Step 1: ... \\boxed{one}",
    "task": "S-Noise",
    "subtask": "qa7-sequential-self_correct",
    "ctx_length": "8k",
}
REPOSITORY = SIX | {
    "task": "P-Drop",
    "subtask": "longmit-parallel2-wrong_answer",
    "ctx_length": "64k",
    "meta": {"answer": "x"},
    "graph": {"parallel_part": [], "merged_part": []},
    "parallel": "parallel",
    "wrong-type": "wrong_answer",
    "parallel-size": 2,
    "data_source": "longmit",
}


@pytest.mark.parametrize(
    ("group", "task", "subtask", "name"),
    [
        (REASONING, "S-Noise", "qa7-sequential-self_correct", "Sequential-Noise"),
        (REASONING, "S-Drop", "longmit-sequential-wrong_answer", "Sequential-Drop"),
        (REASONING, "P-Noise", "qa7-parallel3-self_correct", "Mixed-Noise"),
        (REASONING, "P-Drop", "longmit-parallel2-wrong_answer", "Mixed-Drop"),
        (REASONING, "parallel-self_correct", "qa8-parallel2-self_correct", "Mixed-Noise"),
        (REASONING, "parallel-wrong_answer", "longmit-parallel3-wrong_answer", "Mixed-Drop"),
        (REASONING, "sequential-self_correct", "x", "Sequential-Noise"),
        (REASONING, "mask-info", "longmit-sequential-wrong_answer", "Sequential-Drop"),
        (DIALOGUE, "Mem0-MEM", "mem0_locomo_hard", "Mem0-Mem"),
        (DIALOGUE, "Mem0-OUT", "mem0_locomo_easy", "Mem0-Out"),
        (DIALOGUE, "A-Mem-MEM", "a-mem_memoryagentbench_hard", "A-Mem-Mem"),
        (DIALOGUE, "A-Mem-OUT", "amem_locomo_easy", "A-Mem-Out"),
        (DIALOGUE, "Multi-turn", "a_mem_locomo_easy", "A-Mem-Out"),
        (GENERATION, "sequential", "longgenbench_short_sequantial", "Sequential"),
        (GENERATION, "parallel", "longeval_blog_parallel", "Parallel"),
        (GENERATION, "Long-form_Generation", "longgenbench_short_sequantial", "Sequential"),
        (GENERATION, "Long-form_Generation", "longeval_blog_parallel", "Parallel"),
        (GENERATION, "Long-form_Generation", "longproc_path", "Sequential"),
        *((setting.group, name, "", name) for name, setting in SETTINGS.items()),
    ],
)
def test_every_spelling_of_a_setting(group, task, subtask, name):
    assert setting_of(group, task, subtask) is SETTINGS[name]


@pytest.mark.parametrize(("group", "task"), [(REASONING, "S-Other"), (DIALOGUE, "MemGPT-OUT"), (GENERATION, "blog")])
def test_an_unknown_setting_is_refused(group, task):
    with pytest.raises(DataError, match=f"task '{task}' with subtask 'x' is none of the settings of {group}"):
        setting_of(group, task, "x")


def test_both_released_schemas_are_read(tmp_path):
    (tmp_path / "Long-context_Reasoning.jsonl").write_text(json.dumps(SIX) + "\n" + json.dumps(REPOSITORY) + "\n")
    dialogue = SIX | {"task": "Mem0-MEM", "subtask": "mem0_locomo_hard"}
    (tmp_path / "Multi-turn_Dialogue_Understanding.jsonl").write_text(json.dumps(dialogue) + "\n")
    found = read_folder(tmp_path)
    assert list(found) == [REASONING, DIALOGUE]
    hub, repository = found[REASONING]
    assert hub.answers == (SIX["chosen"], SIX["rejected"]) and hub.question == SIX["question"]
    assert hub.axes == {
        "group": REASONING,
        "setting": "Sequential-Noise",
        "pattern": "sequential",
        "criterion": "process",
        "source": "babilong",
        "length": "8k",
        "task": "S-Noise",
        "subtask": "qa7-sequential-self_correct",
    }
    expected = {
        "setting": "Mixed-Drop",
        "pattern": "mixed",
        "criterion": "outcome",
        "source": "longmit",
        "length": "64k",
    }
    assert expected.items() <= repository.axes.items()
    assert found[DIALOGUE][0].axes["source"] == "locomo"


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({name: value for name, value in SIX.items() if name != "chosen"}, "field 'chosen' is missing"),
        (SIX | {"rejected": " "}, "field 'rejected' holds ' '; want a text that is not empty"),
        (SIX | {"ctx_length": "4k"}, "field 'ctx_length' holds '4k'; want one of 8k"),
        (SIX | {"task": "S-Other", "subtask": "x"}, "none of the settings"),
    ],
)
def test_a_malformed_record_is_refused_by_file_and_line(tmp_path, changed, message):
    (tmp_path / "Long-context_Reasoning.jsonl").write_text(json.dumps(SIX) + "\n" + json.dumps(changed) + "\n")
    with pytest.raises(DataError, match=f"Long-context_Reasoning.jsonl:2: .*{message}"):
        read_folder(tmp_path)


def test_a_folder_with_no_file_or_two_of_a_group_is_refused(tmp_path):
    with pytest.raises(DataError, match="no MemoryRewardBench file"):
        read_folder(tmp_path)
    for name in ("Long-form_Generation", "long-form-old"):
        (tmp_path / f"{name}.jsonl").write_text(json.dumps(SIX) + "\n")
    with pytest.raises(DataError, match="both look like Long-form_Generation"):
        read_folder(tmp_path)


@pytest.mark.parametrize(
    ("tokens", "label"), [(1, "8k"), (8192, "8k"), (8193, "16k"), (131072, "128k"), (131073, "128k+")]
)
def test_length_buckets_round_up(tokens, label):
    assert length_bucket(tokens, LENGTHS) == label


COUNTS = (255, 134, 184, 227, 167, 159, 229, 245, 457, 343)
"""Records of each setting in the published benchmark."""
HITS = (119, 110, 103, 186, 81, 69, 133, 138, 327, 243)
PRINTED = (46.67, 82.09, 55.98, 81.94, 48.50, 43.40, 58.08, 56.33, 71.55, 70.85, 64.75, 52.63, 71.25, 62.88)
CRITERIA = (50.9, 67.4, 71.2)
"""Of Qwen3-32B: hits of each setting (corrected), and percentages as printed: settings, groups and total; process,
outcome, constraint. Printed figures are rounded half up, cut or rounded twice here and there."""


def test_corrected_counts_give_the_published_tables():
    results = [
        (
            {"setting": setting.name, "group": setting.group, "criterion": setting.criterion, "length": "8k"},
            float(n < right),
        )
        for setting, count, right in zip(SETTINGS.values(), COUNTS, HITS, strict=True)
        for n in range(count)
    ]
    table = official_table(results)
    assert list(table) == [*SETTINGS, *GROUPS, "Overall"]
    assert [100 * column["AVG"] for column in table.values()] == pytest.approx(PRINTED, abs=0.0101)
    assert [column["8k"] for column in table.values()] == [column["AVG"] for column in table.values()]
    assert {column["128k"] for column in table.values()} == {-1.0}

    judged = [
        Judged(JudgeItem(str(number), "S", "", ("a", "b"), axes, ()), (0, 1), (0, 1) if right else (1, 0), "ok", False)
        for number, (axes, right) in enumerate(results)
    ]
    figures = judge_figures({"strict5": judged}, ("criterion",), "setting")
    by_criterion = [figures["by"]["criterion"][name] for name in ("process", "outcome", "constraint")]
    assert [100 * part["match"] for part in by_criterion] == pytest.approx(CRITERIA, abs=0.0501)
    assert [part["items"] for part in by_criterion] == [843, 757, 800]
    assert figures["all"]["match"] == pytest.approx(sum(HITS) / 2400)
