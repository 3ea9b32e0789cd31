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


def test_settings_add_up_to_the_benchmark():
    counts = {group: sum(s.official_count for s in SETTINGS.values() if s.group == group) for group in GROUPS}
    assert counts == dict.fromkeys(GROUPS, 800)
    by_criterion = {
        criterion: sum(s.official_count for s in SETTINGS.values() if s.criterion == criterion)
        for criterion in ("process", "outcome", "constraint")
    }
    assert by_criterion == {"process": 843, "outcome": 757, "constraint": 800}


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


# Corrected hit counts of the published main table, and the table as printed (its group means and total, per cent).
HITS = {
    "Claude-Opus-4.5": (122, 122, 97, 210, 107, 73, 193, 173, 409, 288),
    "Gemini-3-Pro": (139, 119, 90, 202, 102, 72, 188, 175, 343, 289),
    "Qwen3-Max": (109, 117, 79, 197, 81, 67, 170, 154, 389, 264),
    "Qwen3-235A22B": (98, 123, 75, 202, 97, 64, 163, 143, 389, 245),
    "GLM4.5-106A12B": (140, 117, 91, 205, 88, 68, 152, 146, 364, 266),
    "Qwen2.5-72B": (98, 100, 96, 200, 63, 43, 103, 91, 259, 190),
    "Llama3.3-70B": (120, 95, 80, 173, 87, 66, 121, 134, 290, 216),
    "Qwen3-32B": (119, 110, 103, 186, 81, 69, 133, 138, 327, 243),
    "Qwen3-14B": (127, 115, 104, 187, 74, 64, 116, 121, 323, 216),
    "Qwen3-8B": (137, 92, 94, 164, 47, 43, 128, 118, 302, 251),
    "Llama3.1-8B": (96, 72, 79, 140, 69, 70, 82, 87, 211, 148),
    "Qwen2.5-7B": (73, 52, 72, 111, 73, 52, 54, 74, 217, 138),
    "Qwen3-4B": (136, 95, 85, 156, 64, 49, 114, 106, 257, 196),
}
PRINTED = {
    "Claude-Opus-4.5": (
        47.84,
        91.05,
        52.72,
        92.51,
        64.07,
        45.91,
        84.28,
        70.61,
        89.50,
        83.97,
        68.88,
        68.25,
        87.13,
        74.75,
    ),
    "Gemini-3-Pro": (54.51, 88.81, 48.91, 88.99, 61.08, 45.28, 82.10, 71.43, 75.06, 84.26, 68.75, 67.13, 79.00, 71.63),
    "Qwen3-Max": (42.75, 87.31, 42.94, 86.78, 48.50, 42.14, 74.24, 62.86, 85.12, 76.97, 62.75, 59.00, 81.63, 67.79),
    "GLM4.5-106A12B": (
        54.90,
        87.31,
        49.46,
        90.31,
        52.70,
        42.77,
        66.38,
        59.59,
        79.65,
        77.55,
        69.13,
        56.75,
        78.75,
        68.21,
    ),
    "Qwen3-235A22B": (38.43, 91.79, 40.76, 88.99, 58.08, 40.25, 71.18, 58.37, 85.12, 71.43, 62.25, 58.38, 79.25, 66.63),
    "Qwen3-32B": (46.67, 82.09, 55.98, 81.94, 48.50, 43.40, 58.08, 56.33, 71.55, 70.85, 64.75, 52.63, 71.25, 62.88),
    "Qwen3-14B": (49.80, 85.82, 56.52, 82.38, 44.31, 40.25, 50.66, 49.39, 70.68, 62.97, 66.63, 46.88, 67.38, 60.29),
    "Llama3.3-70B": (47.06, 70.90, 43.48, 76.21, 52.10, 41.51, 52.84, 54.69, 63.46, 62.97, 58.50, 51.00, 63.25, 57.58),
    "Qwen3-8B": (53.73, 68.66, 51.09, 72.25, 28.14, 27.04, 55.90, 48.16, 66.08, 73.18, 60.88, 42.00, 69.13, 57.33),
    "Qwen3-4B": (53.33, 70.90, 46.20, 68.72, 38.32, 30.82, 49.78, 43.27, 56.24, 57.14, 59.00, 41.63, 56.63, 52.42),
    "Qwen2.5-72B": (38.43, 74.63, 52.17, 88.11, 37.73, 27.04, 44.98, 37.14, 56.67, 55.39, 61.75, 37.50, 56.13, 51.79),
    "Llama3.1-8B": (37.65, 53.73, 42.94, 61.67, 41.32, 44.03, 35.81, 35.51, 46.17, 43.15, 48.38, 38.50, 44.88, 43.92),
    "Qwen2.5-7B": (28.63, 38.81, 39.13, 48.90, 43.71, 32.70, 23.58, 30.20, 47.48, 40.23, 38.50, 31.63, 44.38, 38.17),
}


def results_of(hits):
    return [
        (
            {"setting": setting.name, "group": setting.group, "criterion": setting.criterion, "length": "8k"},
            float(n < right),
        )
        for setting, right in zip(SETTINGS.values(), hits, strict=True)
        for n in range(setting.official_count)
    ]


@pytest.mark.parametrize("model", PRINTED)
def test_aggregation_of_the_corrected_counts_gives_the_published_table(model):
    table = official_table(results_of(HITS[model]))
    assert list(table) == [*SETTINGS, *GROUPS, "Overall"]
    # Printed figures are rounded half up, cut or rounded twice here and there, so 0.01 is their own spread.
    assert [100 * column["AVG"] for column in table.values()] == pytest.approx(PRINTED[model], abs=0.0101)
    assert [column["8k"] for column in table.values()] == [column["AVG"] for column in table.values()]
    assert {column["128k"] for column in table.values()} == {-1.0}


CRITERIA = {
    "Claude-Opus-4.5": (55.2, 83.5, 87.1),
    "Gemini-3-Pro": (56.5, 80.7, 79.0),
    "Qwen3-Max": (48.5, 74.6, 81.6),
    "Qwen3-235A22B": (45.1, 77.3, 79.2),
    "GLM4.5-106A12B": (52.8, 74.2, 78.8),
    "Qwen2.5-72B": (38.9, 61.6, 56.1),
    "Llama3.3-70B": (47.4, 62.9, 63.2),
    "Qwen3-32B": (50.9, 67.4, 71.2),
    "Qwen3-14B": (49.3, 65.0, 67.4),
    "Qwen3-8B": (46.5, 56.9, 69.1),
    "Llama3.1-8B": (39.4, 48.0, 44.9),
    "Qwen2.5-7B": (32.1, 38.3, 44.4),
    "Qwen3-4B": (44.6, 56.7, 56.6),
}


@pytest.mark.parametrize("model", CRITERIA)
def test_breakdown_by_criterion_of_the_corrected_counts(model):
    judged = [
        Judged(JudgeItem(str(number), "S", "", ("a", "b"), axes, ()), (0, 1), (0, 1) if right else (1, 0), "ok", False)
        for number, (axes, right) in enumerate(results_of(HITS[model]))
    ]
    figures = judge_figures({"strict5": judged}, ("criterion",), "setting")
    shares = [100 * figures["by"]["criterion"][name]["match"] for name in ("process", "outcome", "constraint")]
    assert shares == pytest.approx(CRITERIA[model], abs=0.0501)
    assert figures["all"]["match"] == pytest.approx(sum(HITS[model]) / 2400)
    assert [part["items"] for part in figures["by"]["criterion"].values()] == [843, 757, 800]
