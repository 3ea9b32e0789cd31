import pytest

from elastic_jax.errors import DataError
from eval.suites.records import JsonRecord, read_records


def test_records_know_their_file_and_line(tmp_path):
    file = tmp_path / "some.jsonl"
    file.write_text('{"a": "x"}\n\n{"a": ""}\n', encoding="utf-8")
    records = read_records(file)
    assert [record.where for record in records] == [f"{file}:1", f"{file}:3"]
    assert records[0].text("a") == "x"
    with pytest.raises(DataError, match="some.jsonl:3: field 'a' holds ''; want a text that is not empty"):
        records[1].text("a")
    with pytest.raises(DataError, match="jsonl:1: field 'b' is missing"):
        records[0].text("b")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"a": 1}\n{"a": ', "some.jsonl:2: not valid JSON"),
        (b"[1, 2]\n", "some.jsonl:1: a list; want a JSON object"),
        (b"\n", "some.jsonl holds no record"),
        (b'{"a": "\xff"}\n', "some.jsonl cannot be read as UTF-8"),
    ],
)
def test_a_malformed_file_is_refused(tmp_path, content, message):
    file = tmp_path / "some.jsonl"
    file.write_bytes(content)
    with pytest.raises(DataError, match=message):
        list(read_records(file))


@pytest.mark.parametrize("value", [None, [], ["only one"], ["one", 2], "text"])
def test_a_list_of_texts_must_be_one(value):
    record = JsonRecord("here", {"a": value})
    with pytest.raises(DataError, match="here: field 'a' holds .*; want a list of 2 or more texts"):
        record.texts("a", at_least=2)
    assert JsonRecord("here", {"a": ["", "x"]}).texts("a", at_least=2) == ["", "x"]


def test_long_values_are_not_printed_whole():
    with pytest.raises(DataError) as caught:
        JsonRecord("here", {"a": "x" * 10_000}).choice("a", ("8k",))
    assert len(str(caught.value)) < 200
