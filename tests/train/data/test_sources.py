import json
import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
from tiny_text import tiny_tokenizer

from elastic_jax.config import RouterConfig
from elastic_jax.errors import DataError
from elastic_jax.files import write_json_lines
from train.config import DataConfig, RouterTrainConfig, TaskConfig, TasksConfig
from train.data.records import CODE, TASKS, Record
from train.data.sources import parse_records, read_samples
from train.data.tables import read_rows
from train.reward.data.readers import read_preferences
from train.reward.data.records import PreferenceRecord, conversation

GOOD = {"context": "c", "question": "q", "answer": "a", "metadata": {"task": "Code"}}
RECORDS = [Record(f"context {i}", "why?", f"so {i}", i % 5, is_prefix=bool(i % 2)) for i in range(7)]


def config(row_length: int = 64, loss_on: str = "all") -> RouterTrainConfig:
    tasks = TasksConfig(*[TaskConfig(loss_on=loss_on)] * 5)
    data = DataConfig(row_length=row_length, weighting="tokens")
    return RouterTrainConfig(router=RouterConfig(block_size=4), tasks=tasks, data=data)


def read_packed(file, **settings):
    """No tokenizer is needed, as the rows hold tokens."""
    return read_samples(file, None, config(**settings))


def read_records(file):
    return parse_records(read_rows(file), file)


def raw(record: Record, metadata=lambda value: value) -> dict:
    labels = {"task": TASKS[record.task], "is_prefix": record.is_prefix}
    texts = {"context": record.context, "question": record.question, "answer": record.answer}
    return texts | {"metadata": metadata(labels), "length": 12}


def test_records_survive_a_round_trip(tmp_path):
    odd = GOOD | {
        "context": "ü\u2028\x85 and on",
        "question": "",
        "metadata": {"task": "Single QA", "is_prefix": False},
    }
    write_json_lines(tmp_path / "r.jsonl", [GOOD, odd])
    assert read_records(tmp_path / "r.jsonl") == [
        Record("c", "q", "a", CODE),
        Record("ü\u2028\x85 and on", "", "a", 0, is_prefix=False),
    ]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "r.jsonl:2: not valid JSON"),
        ("[]", "r.jsonl:2: a record is a JSON object; got list"),
        (json.dumps({**GOOD, "context": 3}), "`context` must be a string; got int"),
        (json.dumps({**GOOD, "answer": ""}), "must not be empty"),
        (json.dumps({"context": "c", "question": "q", "metadata": {}}), "`answer` must be a string; got nothing"),
        (json.dumps({**GOOD, "metadata": None}), "`metadata` must be an object"),
        (json.dumps({**GOOD, "metadata": "print(1)"}), "r.jsonl:2: `metadata` is text, but neither JSON nor a Python"),
        (json.dumps({**GOOD, "metadata": {"task": "Sumarization"}}), "Did you mean 'Summarization'"),
        (json.dumps({**GOOD, "metadata": {"task": "Code", "is_prefix": 1}}), "`metadata.is_prefix` must be true or"),
    ],
)
def test_bad_lines_are_named_with_file_and_line(tmp_path, line, message):
    (tmp_path / "r.jsonl").write_text(json.dumps(GOOD) + "\n" + line + "\n")
    with pytest.raises(DataError, match=message):
        read_records(tmp_path / "r.jsonl")


@pytest.mark.parametrize("form", [dict, json.dumps, repr])
def test_metadata_may_be_an_object_or_its_text(tmp_path, form):
    lines = [json.dumps(raw(record, form)) for record in RECORDS]
    (tmp_path / "r.jsonl").write_text("\n".join(lines))
    assert read_records(tmp_path / "r.jsonl") == RECORDS


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_a_null_is_a_field_that_is_not_there(tmp_path, kind):
    """Tables have every column in every row; so a row of one form holds nulls for the fields of others."""
    rows = [
        {"prompt": "Where?", "chosen": "Here.", "rejected": ["No."], "margin": None, "context": None, "kinds": None},
        {"chat_template": [{"role": "user", "content": "Where?", "name": None}], "chosen": "Here.", "rejects": ["No."]},
    ]
    names = {name for row in rows for name in row}
    rows = [{name: row.get(name) for name in sorted(names)} for row in rows]
    file = tmp_path / f"r.{kind}"
    if kind == "jsonl":
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        pytest.importorskip("pyarrow.parquet")
        import pyarrow

        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), file)
    records, _ = read_preferences(file)
    assert records == [PreferenceRecord(conversation(("user", "Where?")), "Here.", ("No.",))] * 2
    metadata = {"task": "Code", "is_prefix": None}
    (tmp_path / "t.jsonl").write_text(
        json.dumps({"context": "a", "question": "b", "answer": "c", "metadata": metadata})
    )
    assert read_records(tmp_path / "t.jsonl") == [Record("a", "b", "c", CODE)]


def test_json_lines_are_read_one_by_one(tmp_path):
    file = tmp_path / "r.jsonl"
    file.write_text((json.dumps({"context": "\N{GRINNING FACE}" + "x" * 400_000}, ensure_ascii=False) + "\n") * 20)
    tracemalloc.start()
    assert sum(1 for _ in read_rows(file)) == 20
    assert tracemalloc.get_traced_memory()[1] < 8e6  # a line takes 1.6 MB, the file 32 MB
    tracemalloc.stop()


def packed_row(**changes) -> dict:
    """Two samples of 5 and 4 tokens, prompts of 3 and 2, and one token of padding."""
    ids = list(range(10, 20))
    row = {
        "input_ids": ids,
        "labels": [-100, *ids[1:5], -100, *ids[6:9], -100],
        "seq_lengths": [0, 5, 9],
        "task_ids": [CODE, 0],
        "task_type": [TASKS[CODE], TASKS[0]],
        "range_ids": [[0, 0, 0, 2, 0, 2, 3, 4], [0, 0, 0, 1, 0, 1, 2, 3]],
    }
    return row | changes


def write(path, *rows):
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def test_packed_rows_are_taken_apart(tmp_path):
    file = write(tmp_path / "p.jsonl", packed_row())
    first, second = read_packed(file)
    np.testing.assert_array_equal(first.input_ids, [10, 11, 12, 13, 14])
    np.testing.assert_array_equal(first.labels, [11, 12, 13, 14, 0])
    np.testing.assert_array_equal(first.weights, [1, 1, 1, 1, 0])
    np.testing.assert_array_equal(second.input_ids, [15, 16, 17, 18])
    assert [int(s.prompt_lengths[0]) for s in (first, second)] == [3, 2]
    assert [int(s.task_ids[0]) for s in (first, second)] == [CODE, 0]


def test_answers_alone_can_be_learnt_and_what_a_row_ignores_is_not(tmp_path):
    labels = [-100] * 4 + [14] + [-100] * 5
    file = write(tmp_path / "p.jsonl", packed_row(labels=labels))
    first, second = read_packed(file)
    np.testing.assert_array_equal(first.weights, [0, 0, 0, 1, 0])
    assert not second.weights.any()
    answers = read_packed(write(tmp_path / "q.jsonl", packed_row()), loss_on="answer")
    np.testing.assert_array_equal(answers[0].weights, [0, 0, 1, 1, 0])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"range_ids": None}, "p.jsonl:2: a packed row lacks range_ids"),
        ({"labels": [1, 2]}, "10 input_ids, 2 labels"),
        ({"seq_lengths": [0, 5, 99]}, "rising numbers from 0 to 10"),
        ({"seq_lengths": [0, 5, 5]}, "rising numbers"),
        ({"task_ids": [5, 0]}, "task_ids .5.; want 0 to 4"),
        ({"range_ids": [[0, 0, 0, 9, 0, 9, 3, 4], [0] * 8]}, "do not fit samples"),
        ({"input_ids": ["a"]}, "wrong form"),
    ],
)
def test_malformed_packed_rows_are_named(tmp_path, changes, message):
    file = write(tmp_path / "p.jsonl", packed_row(), packed_row(**changes))
    with pytest.raises(DataError, match=message):
        read_packed(file)


def test_a_packed_sample_longer_than_a_row_is_refused(tmp_path):
    with pytest.raises(DataError, match="sample 0 has 5 tokens; a row holds 4"):
        read_packed(write(tmp_path / "p.jsonl", packed_row()), row_length=4)


def test_files_without_rows_are_refused(tmp_path):
    with pytest.raises(DataError, match="holds no records"):
        read_packed(write(tmp_path / "r.jsonl"))


def test_rows_of_text_become_samples(tmp_path):
    file = write(tmp_path / "r.jsonl", *map(raw, RECORDS))
    settings = replace(config(), data=replace(config().data, template="raw"))
    assert len(read_samples(file, tiny_tokenizer(), settings)) == len(RECORDS)
