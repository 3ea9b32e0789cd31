import json
from pathlib import Path

import pytest
from chat_tokenizers import chat_tokenizer

from elastic_jax.errors import ConfigError, DataError
from train.reward.data.readers import read_judge_records, read_preferences
from train.reward.synthesis import files
from train.verbs.synthesise import main


def line(number, **changes):
    chunks = [f"Room {number} holds {number + 1} chairs.", {"text": "Rain fell all day.", "critical": False}]
    fields = {
        "id": f"r{number}",
        "perspective": "quality",
        "question": "How many chairs?",
        "response": f"{number + 1}.",
    }
    return fields | {"chunks": chunks, "judgement": "[Analysis]\nRight.\n\n[Score: 10]"} | changes


def voted(number, *scores):
    texts = {name: f"[Analysis]\n{name}\n\n[Score: {score}]" for name, score in zip("abc", scores, strict=True)}
    return line(number, judgement=None, judgements=texts)


@pytest.fixture
def run(tmp_path):
    chat_tokenizer().save_pretrained(tmp_path / "model")
    folder = tmp_path / "prose"
    folder.mkdir()
    (folder / "prose.txt").write_text("The river was slow and wide that year. Nobody crossed it. " * 60)

    def start(rows, *flags, out="long.jsonl") -> Path:
        (tmp_path / "short.jsonl").write_text("\n".join(map(json.dumps, rows)))
        flags = [*flags, "--model", str(tmp_path / "model"), "--filler", str(folder), "--target-tokens", "700", "900"]
        paths = ["--samples", str(tmp_path / "short.jsonl"), "--out", str(tmp_path / out), "--reserve", "40"]
        assert main([*paths, *flags]) == 0
        return tmp_path / out

    return start


def test_judgements_become_records_for_supervised_training(run):
    out = run([line(number) for number in range(6)])
    records, tally = read_judge_records(out)
    rows = [json.loads(text) for text in out.read_text().splitlines()]
    assert tally.kept == 6 and [row["id"] for row in rows] == [f"r{number}" for number in range(6)]
    assert {row["target_tokens"] for row in rows} == {700, 900}
    for number, (row, record) in enumerate(zip(rows, records, strict=True)):
        assert row["target_tokens"] - 80 < row["tokens"] <= row["target_tokens"] - 40
        begin, end = row["places"][0]
        assert record.context is not None
        assert record.context[begin:end] == f"Room {number} holds {number + 1} chairs."
        assert record.answer.endswith("[Score: 10]")


def test_several_judgements_become_preferences_by_vote(run, capsys):
    rows = [voted(0, 8, 8, 3), voted(1, 1, 2, 3), voted(2, 5, 7, 7)]
    out = run(rows, "--voting.priority", "a", "b", "c")
    records, _ = read_preferences(out)
    assert [record.chosen.split()[1] for record in records] == ["b", "c"]
    assert [[text.split()[1] for text in record.rejected] for record in records] == [["c", "a"], ["a", "b"]]
    assert json.loads(out.read_text().splitlines()[0])["conf"] == [2, 1]
    said = capsys.readouterr().out
    assert "2 records" in said and "skipped 1: fewer than 2 models agree" in said and "short.jsonl:2" in said


def test_an_interrupted_run_goes_on_and_writes_the_same(run, tmp_path, monkeypatch):
    rows = [line(number) for number in range(5)]
    whole = run(rows, out="whole.jsonl").read_text()
    made, count = files.Lengthener.line, []

    def stop_at_third(self, item):
        count.append(item.uid)
        if len(count) == 3:
            raise KeyboardInterrupt
        return made(self, item)

    monkeypatch.setattr(files.Lengthener, "line", stop_at_third)
    with pytest.raises(KeyboardInterrupt):
        run(rows, out="stopped.jsonl")
    part = tmp_path / "stopped.jsonl.part"
    assert part.exists() and not (tmp_path / "stopped.jsonl").exists()
    with part.open("ab") as file:
        file.write(b'{"id": "r2", "line": {"pro')  # a crash in the middle of a line
    with pytest.raises(DataError, match="seed: the journal has 0, this run 1"):
        run(rows, "--seed", "1", out="stopped.jsonl")
    prose = tmp_path / "prose" / "prose.txt"
    texts = prose.read_text()
    prose.write_text(texts.replace("river", "canal"))
    with pytest.raises(DataError, match="filler: the journal has"):
        run(rows, out="stopped.jsonl")
    prose.write_text(texts)
    assert run(rows, out="stopped.jsonl").read_text() == whole
    assert count == ["r0", "r1", "r2", "r2", "r3", "r4"] and not part.exists()
    with pytest.raises(DataError, match="is there already"):
        run(rows, out="stopped.jsonl")


def test_prompts_for_the_strong_judge(run):
    out = run([line(0, judgement=None)], "--stage", "prompts")
    (row,) = map(json.loads, out.read_text().splitlines())
    assert row["id"] == "r0" and [message["role"] for message in row["prompt"]] == ["system", "user"]
    assert "Room 0" in row["prompt"][1]["content"] and "Rain" not in row["prompt"][1]["content"]


@pytest.mark.parametrize(
    ("row", "complaint"),
    [
        (line(0, perspective="taste"), ":1: `perspective` is 'taste'; want one of faithfulness"),
        (line(0, question=" "), "`question` must be a text"),
        (line(0, chunks=[]), "no chunk is critical"),
        (line(0, chunks=[3]), "`chunks` holds 3"),
        (line(0, judgements={"a": "x"}), "not both"),
        (line(0, judgement=None), "Make prompts for them: --stage prompts"),
        (voted(0, 1, 2, 3), "priority does not name a, b, c"),
        (line(0, chunks=["word " * 2000]), "every sample was left out"),
        (line(0, judgement="[Score: 8] or so"), "every sample was left out"),
    ],
)
def test_bad_samples_are_refused(run, row, complaint):
    with pytest.raises(DataError, match=complaint):
        run([row])


def test_judgements_and_votes_are_not_mixed(run):
    with pytest.raises(DataError, match="some lines have `judgement`, others `judgements`"):
        run([line(0), voted(1, 8, 8, 3)])


def test_two_samples_of_one_id_are_refused(run):
    with pytest.raises(DataError, match=":2: the id 'r0' is that of"):
        run([line(0), line(0, question="How many?")])


def test_a_reserve_as_long_as_the_target_is_refused():
    with pytest.raises(ConfigError, match="each longer than the reserve"):
        main(["--samples", "x", "--out", "y", "--target-tokens", "1000"])
