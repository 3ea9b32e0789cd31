import json

import pytest

from elastic_jax.errors import DataError
from eval.suites.records import JsonRecord
from eval.suites.rewardbench.long import items_of, official_table, read_folder

PAIR = {
    "id": 7,
    "prompt_template": [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "A very long story. Where is the key?"},
    ],
    "question": "Where is the key?",
    "source": "MadeUpBench",
    "task": "LongQA",
    "subtask": "single-doc qa",
    "tasktype": "PairWise",
    "subtype": "same",
    "chosen": "In the blue box.",
    "rejected": "",
    "chosen_model": "m-8b",
    "rejected_model": "m-8b",
    "ctx_length_for_length": "16k",
    "ctx_length_for_words": "8k",
    "length": 15012,
    "words_count": 9120,
    "candidates": None,
    "candidates_model": None,
    "candidates_score": None,
}
RANKING = PAIR | {
    "tasktype": "BestOfN",
    "subtype": "3",
    "chosen": None,
    "rejected": None,
    "candidates": ["full summary", "half summary", "off-topic"],
    "candidates_model": ["a", "b", "c"],
    "candidates_score": [0.61, 0.40, 0.12],
    "ctx_length_for_length": "8k",
}


def test_both_formats_are_read_from_a_folder(tmp_path):
    (tmp_path / "Summ.jsonl").write_text(json.dumps(RANKING) + "\n")
    (tmp_path / "LongQA.jsonl").write_text(json.dumps(PAIR) + "\n" + json.dumps(PAIR | {"tasktype": None}) + "\n")
    found = read_folder(tmp_path)
    assert list(found) == ["LongQA", "Summ"]
    pair, unnamed = found["LongQA"]
    assert pair.question == "Be brief.\n\nA very long story. Where is the key?"
    assert pair.answers == ("In the blue box.", "")
    assert pair.conversation == tuple(PAIR["prompt_template"])
    assert pair.axes == {
        "task": "LongQA",
        "tasktype": "PairWise",
        "subtype": "same",
        "source": "MadeUpBench",
        "length": "16k",
    }
    assert unnamed.axes["tasktype"] == "" and not unnamed.ranking
    (ranking,) = found["Summ"]
    assert ranking.ranking and ranking.answers == tuple(RANKING["candidates"])


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (PAIR | {"chosen": None}, "field 'chosen'"),
        ({name: value for name, value in PAIR.items() if name != "rejected"}, "field 'rejected'"),
        (PAIR | {"tasktype": "Listwise"}, "field 'tasktype' holds 'Listwise'; want one of PairWise, BestOfN"),
        (PAIR | {"ctx_length_for_length": "9k"}, "want one of 4k, 8k"),
        (PAIR | {"prompt_template": []}, "'prompt_template' is missing or empty"),
        (PAIR | {"prompt_template": ["text"]}, "an entry that is no message"),
        (PAIR | {"prompt_template": [{"role": "tool", "content": "x"}]}, "an entry that is no message"),
        (PAIR | {"prompt_template": PAIR["prompt_template"][:1]}, "no message of the user"),
        (RANKING | {"candidates": []}, "field 'candidates' holds \\[\\]; want a list of 2 or more texts"),
        (RANKING | {"subtype": "4"}, "3 candidates with subtype '4'"),
        (RANKING | {"candidates_score": [0.1, 0.4, 0.6]}, "candidates must be stored best first"),
        (RANKING | {"candidates_score": [0.6]}, "'candidates_score' is missing or not 3 numbers"),
    ],
)
def test_a_malformed_record_is_refused_by_file_and_line(tmp_path, changed, message):
    file = tmp_path / "Code.jsonl"
    file.write_text(json.dumps(PAIR) + "\n" + json.dumps(changed) + "\n")
    with pytest.raises(DataError, match=f"Code.jsonl:2: .*{message}"):
        read_folder(tmp_path)


def test_a_folder_without_task_files_is_refused(tmp_path):
    with pytest.raises(DataError, match="no Long-RewardBench file; want one or more of LongQA, Summ"):
        read_folder(tmp_path)


def test_uids_follow_content_not_place():
    records = [JsonRecord("x", PAIR), JsonRecord("y", PAIR | {"chosen": "In the red box."})]
    first, second = items_of("Code", records)
    assert [item.uid for item in items_of("Code", records[::-1])] == [second.uid, first.uid]
    assert first.uid != second.uid


def axes(task, tasktype, subtype, length="4k"):
    return {"task": task, "tasktype": tasktype, "subtype": subtype, "source": "", "length": length}


def test_official_table_has_the_official_rows_in_order():
    results = [
        (axes("LongQA", "PairWise", "same", "4k"), 1.0),
        (axes("LongQA", "PairWise", "other", "8k"), 0.0),
        (axes("Summ", "BestOfN", "3", "8k"), 1 / 3),
        (axes("Math", "", "None", "8k"), 1.0),
    ]
    table = official_table(results)
    assert list(table) == [
        *("LongQA", "Summ", "Safety", "ICL", "Cite", "Code", "Math", "Same.", "Diff.", "PairWise Avg."),
        *("Rank2", "Rank3", "Rank4", "Rank Avg,", "4k", "8k", "16k", "32k", "64k", "128k", "AVG."),
    ]
    assert table["LongQA"] == table["PairWise Avg."] == 0.5 and table["Summ"] == table["Math"] == 0.0
    assert (table["Same."], table["Diff."], table["4k"], table["8k"]) == (1.0, 0.0, 1.0, 0.0)
    assert (table["Rank3"], table["Rank Avg,"]) == (0.33333, 0.33333)
    assert table["AVG."] == round((1 + 0 + 1 / 3 + 1) / 4, 5)


PAIR_COUNTS = {"LongQA": 240, "Summ": 200, "Safety": 140, "ICL": 160, "Cite": 100, "Code": 100, "Math": 60}


@pytest.mark.parametrize(
    ("pairs", "rankings", "average"),
    [
        ([50] * 7, [50, 16.7, 4.2], 37.5),
        ([52.1, 68.0, 60.0, 68.1, 51.0, 58.0, 71.7], [38.3, 20.1, 17.6], 43.90),
        ([52.9, 65.5, 61.4, 63.1, 50.0, 55.0, 68.3], [37.3, 23.9, 18.3], 43.65),
    ],
)
def test_average_weighs_records_alike_as_in_published_rows(pairs, rankings, average):
    results = [
        (axes(task, "PairWise", "same"), accuracy / 100)
        for (task, count), accuracy in zip(PAIR_COUNTS.items(), pairs, strict=True)
        for _ in range(count)
    ]
    results += [
        (axes("Cite", "BestOfN", size), match / 100)
        for size, match in zip("234", rankings, strict=True)
        for _ in range(300)
    ]
    assert 100 * official_table(results)["AVG."] == pytest.approx(average, abs=0.03)
