import json

import pytest

from elastic_jax.errors import ConfigError, DataError
from elastic_jax.files import write_json_lines
from train.reward.data.readers import hold_out, read_judge_records, read_preferences
from train.reward.data.records import JudgeRecord, PreferenceRecord, conversation
from train.reward.examples.generate import records

ASKED = {"role": "user", "content": "Where is the key?"}
WANTED = PreferenceRecord(conversation(("user", "Where is the key?")), "In the box.", ("In the car.",))


def said(text):
    return {"role": "assistant", "content": text}


def lines_file(folder, *rows):
    path = folder / "pairs.jsonl"
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows))
    return path


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "Where is the key?", "chosen": "In the box.", "rejected": "In the car."},
        {"prompt": [ASKED], "chosen": "In the box.", "rejected": ["In the car."]},
        {"prompt": [ASKED], "chosen": [said("In the box.")], "rejected": [[said("In the car.")]]},
        {
            "prompt": "Where is the key?",
            "chosen": [ASKED, said("In the box.")],
            "rejected": [ASKED, said("In the car.")],
        },
        {"chosen": [ASKED, said("In the box.")], "rejected": [ASKED, said("In the car.")]},
        {"chat_template": [ASKED], "chosen": "In the box.", "rejects": ["In the car."], "context": "the key"},
    ],
    ids=["plain", "conversational", "messages", "repeated prompt", "implicit prompt", "LongRM"],
)
def test_every_form_gives_the_same_record(tmp_path, row):
    (record,), tally = read_preferences(lines_file(tmp_path, row))
    assert record == WANTED and tally.kept == 1 and not tally.skipped


def test_records_survive_the_file(tmp_path):
    made = records(4, 0, rejects=3)
    write_json_lines(tmp_path / "made.jsonl", (record.to_json() for record in made))
    assert read_preferences(tmp_path / "made.jsonl")[0] == made
    judge = [JudgeRecord(WANTED.prompt, "[[A]]\u2028[[B]]", "key")]
    write_json_lines(tmp_path / "judge.jsonl", (record.to_json() for record in judge))
    assert read_judge_records(tmp_path / "judge.jsonl")[0] == judge


def test_margin_and_several_rejected_answers(tmp_path):
    row = {"prompt": "Q", "chosen": "a", "rejected": ["b", "", "a"], "margin": 2, "kinds": ["x", "y", "z"]}
    (record,), tally = read_preferences(lines_file(tmp_path, row))
    assert record.rejected == ("b", "") and record.kinds == ("x", "y") and record.margin == 2.0
    assert tally.skipped == {"chosen and rejected are equal": 1}


def test_useless_records_are_left_out_and_counted(tmp_path):
    good = {"prompt": "Q", "chosen": "a", "rejected": "b"}
    rows = [
        good,
        good | {"rejected": None},
        {"prompt": "Q", "chosen": "a"},
        good | {"rejected": " a"},
        good | {"chosen": ""},
    ]
    path = lines_file(tmp_path, *rows)
    found, tally = read_preferences(path)
    assert len(found) == 1
    assert tally.skipped == {
        "no rejected answer": 2,
        "chosen and rejected are equal": 1,
        "the chosen answer is empty": 1,
    }
    assert f"skipped 2: no rejected answer (first: {path}:2)" in str(tally)
    with pytest.raises(DataError, match="no record that can be used(.|\n)*skipped 1: no rejected answer"):
        read_preferences(lines_file(tmp_path, good | {"rejected": []}))


@pytest.mark.parametrize(
    ("row", "complaint"),
    [
        ("[1]", "a record is an object"),
        ("{", "not valid JSON"),
        ({"prompt": [said("x")], "chosen": "a", "rejected": "b"}, "must end with a message of the user"),
        ({"prompt": [{"role": "bot", "content": "x"}], "chosen": "a", "rejected": "b"}, "is no message"),
        ({"prompt": "", "chosen": "a", "rejected": "b"}, "`prompt` is ''; want a list of messages"),
        ({"prompt": "Q", "chosen": 3, "rejected": "b"}, "`chosen` is 3; want the text"),
        ({"prompt": "Q", "chosen": "a", "rejected": [ASKED, said("b")]}, "messages of user, assistant"),
        ({"chosen": [ASKED, said("a")], "rejected": [said("b")]}, "differ before their last answer"),
        ({"prompt": "Q", "chosen": "a", "rejected": "b", "margin": "big"}, "`margin` is 'big'"),
        ({"prompt": "Q", "chosen": "a", "rejected": "b", "margin": float("nan")}, "want a finite number"),
        ({"prompt": "Q", "chosen": "a", "rejected": "b", "context": "zzz"}, "no part of any message"),
        ({"prompt": "Q", "chosen": "a", "rejected": "b", "kinds": ["x", "y"]}, "one text for each of 1"),
    ],
)
def test_malformed_records_are_refused_with_file_and_line(tmp_path, row, complaint):
    good = {"prompt": "Q", "chosen": "a", "rejected": "b"}
    with pytest.raises(DataError, match=complaint) as caught:
        read_preferences(lines_file(tmp_path, good, "", row))
    assert str(caught.value).startswith(f"{tmp_path / 'pairs.jsonl'}:3: ")


def test_judge_records_of_both_forms(tmp_path):
    rows = [{"prompt": [ASKED], "answer": "[[A]]"}, {"chat_template": [ASKED], "golden": "[[B]]"}]
    found, tally = read_judge_records(lines_file(tmp_path, *rows, {"prompt": "Q", "answer": " "}))
    assert [record.answer for record in found] == ["[[A]]", "[[B]]"]
    assert tally.skipped == {"the answer is empty": 1}
    with pytest.raises(DataError, match=":1: `answer` must be a text; got missing"):
        read_judge_records(lines_file(tmp_path, {"prompt": "Q"}))


def test_held_out_records_share_no_prompt_with_the_others():
    made = records(20, 0)
    doubled = made + [PreferenceRecord(r.prompt, r.chosen, ("no",)) for r in made]
    train, held = hold_out(doubled, 10, seed=1)
    assert len(held) == 10 and len(train) == 30
    assert not {r.prompt for r in train} & {r.prompt for r in held}
    assert hold_out(doubled, 10, seed=1) == (train, held) != hold_out(doubled, 10, seed=2)


@pytest.mark.parametrize(("count", "complaint"), [(0, "nothing to evaluate on"), (20, "nothing to train on")])
def test_an_empty_side_is_refused(count, complaint):
    with pytest.raises(DataError, match=complaint):
        hold_out(records(20, 0), count, seed=0)


def test_folders_and_files_that_cannot_be_read(tmp_path):
    with pytest.raises(DataError, match="no such file or folder"):
        read_preferences(tmp_path / "nowhere")
    with pytest.raises(DataError, match="found none"):
        read_preferences(tmp_path)
    (tmp_path / "a.csv").write_text("x")
    with pytest.raises(DataError, match="unknown kind of file '.csv'"):
        read_preferences(tmp_path / "a.csv")
    (tmp_path / "dataset_dict.json").write_text("{}")
    (tmp_path / "train").mkdir()
    with pytest.raises(DataError, match="several splits .train."):
        read_preferences(tmp_path)


def test_a_folder_of_files_is_read_in_their_order(tmp_path):
    for number in range(3):
        made = records(number + 1, number)
        write_json_lines(tmp_path / f"part-{number}.jsonl", (record.to_json() for record in made))
    assert read_preferences(tmp_path)[0] == [*records(1, 0), *records(2, 1), *records(3, 2)]


def test_parquet_without_pyarrow_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    (tmp_path / "a.parquet").write_bytes(b"")
    with pytest.raises(ConfigError, match="elastic-jax.arrow."):
        read_preferences(tmp_path / "a.parquet")


@pytest.fixture
def table():
    pyarrow = pytest.importorskip("pyarrow")
    pytest.importorskip("pyarrow.parquet")
    return pyarrow.Table.from_pylist([record.to_json() | {"empty": {}} for record in records(7, 0, rejects=2)])


def test_parquet_files(tmp_path, table):
    import pyarrow.parquet

    pyarrow.parquet.write_table(table.drop_columns("empty"), tmp_path / "a.parquet", row_group_size=3)
    assert read_preferences(tmp_path / "a.parquet")[0] == read_preferences(tmp_path)[0] == records(7, 0, rejects=2)
    (tmp_path / "a.parquet").write_bytes(b"PAR1 and nothing else")
    with pytest.raises(DataError, match="a.parquet: cannot be read as Parquet"):
        read_preferences(tmp_path)


def test_folders_that_datasets_saved(tmp_path, table):
    import pyarrow

    def write(name, part):
        with pyarrow.ipc.new_stream(str(tmp_path / name), part.schema) as stream:
            stream.write_table(part, max_chunksize=2)

    write("data-00000-of-00002.arrow", table[:4])
    write("data-00001-of-00002.arrow", table[4:])
    write("cache-1.arrow", table[:2])
    listed = [{"filename": f"data-{number:05}-of-00002.arrow"} for number in range(2)]
    (tmp_path / "state.json").write_text(json.dumps({"_data_files": listed}))
    assert read_preferences(tmp_path)[0] == records(7, 0, rejects=2)
    broken = table.set_column(1, "chosen", pyarrow.array([None] * 7, pyarrow.string()))
    write("data-00001-of-00002.arrow", broken[4:])
    with pytest.raises(DataError, match="data-00001-of-00002.arrow:row 1: `chosen` is missing"):
        read_preferences(tmp_path)
    (tmp_path / "data-00001-of-00002.arrow").unlink()
    with pytest.raises(DataError, match="data files are missing: data-00001"):
        read_preferences(tmp_path)
