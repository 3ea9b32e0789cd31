import json

import pytest

from elastic_jax.errors import DataError
from elastic_jax.files import write_json_lines
from train.data.records import CODE, Record
from train.data.sources import parse_records
from train.data.tables import read_rows

GOOD = {"context": "c", "question": "q", "answer": "a", "metadata": {"task": "Code"}}


def read_records(file):
    return parse_records(read_rows(file), file)


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
        (json.dumps({**GOOD, "metadata": {"task": "Sumarization"}}), "Did you mean 'Summarization'"),
        (json.dumps({**GOOD, "metadata": {"task": "Code", "is_prefix": 1}}), "`metadata.is_prefix` must be true or"),
    ],
)
def test_bad_lines_are_named_with_file_and_line(tmp_path, line, message):
    (tmp_path / "r.jsonl").write_text(json.dumps(GOOD) + "\n" + line + "\n")
    with pytest.raises(DataError, match=message):
        read_records(tmp_path / "r.jsonl")
