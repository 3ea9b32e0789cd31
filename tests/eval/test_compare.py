import json

import pytest

from elastic_jax.cli import main as elastic_jax_cli
from elastic_jax.errors import DataError
from elastic_jax.journal import Journal
from eval.compare import compare_runs


def write(folder, scores, task="vt", main="match"):
    """A journal with the score of each sample, or its scores by showing label."""
    with Journal(folder / "journal.jsonl", {"seed": 0}) as journal:
        for uid, found in scores.items():
            for place, (label, score) in enumerate((found if isinstance(found, dict) else {"": found}).items()):
                record = {"task": task, "uid": uid, "arm": "full", "showing": {"label": label, "order": [place]}}
                record |= {"main": main, "scores": {main: score}, "status": "ok", "cut_tokens": 0}
                journal.append({f"{uid}|{label}|full": record})
    return folder


def test_runs_are_paired_by_sample(tmp_path):
    a = write(tmp_path / "a", {f"vt/{i}": i % 2 for i in range(20)} | {"vt/only a": 0})
    b = write(tmp_path / "b", {f"vt/{i}": 1 if i < 15 else i % 2 for i in range(20)})
    report = compare_runs(a, b, None, None)
    (row,) = report["rows"]
    assert (row["n"], row["better"], row["worse"], report["unpaired"]) == (20, 8, 0, 1)
    assert (row["score_a"], row["score_b"], row["difference"]) == (0.5, 0.9, pytest.approx(0.4))
    assert row["interval"][0] > 0 and row["p"] == pytest.approx(2 / 2**8)
    same = compare_runs(a, a, None, None)["rows"][0]
    assert (same["difference"], same["interval"], same["p"]) == (0, [0, 0], 1)


def test_arms_of_one_run_can_be_compared(tmp_path, capsys):
    write(tmp_path / "a", {"vt/0": 1, "vt/1": 1})
    with Journal(tmp_path / "a" / "journal.jsonl", {"seed": 0}) as journal:
        for uid in ("vt/0", "vt/1"):
            journal.append({f"{uid}||elastic": journal[f"{uid}||full"] | {"arm": "elastic", "scores": {"match": 0.5}}})
    words = ["eval", "compare", "--a", str(tmp_path / "a"), "--b", str(tmp_path / "a"), "--arm-a", "full"]
    assert elastic_jax_cli([*words, "--arm-b", "elastic", "--out", str(tmp_path / "out")]) == 0
    assert "| vt | full → elastic | 2 | 100.0 | 50.0 | -50.0 (-50.0 to -50.0) | 0 / 2 |" in capsys.readouterr().out
    assert (tmp_path / "out" / "comparison.md").is_file()
    assert "vt,full,elastic,2,1.0,0.5" in (tmp_path / "out" / "comparison.csv").read_text()


def test_a_sample_shown_twice_is_one_pair(tmp_path):
    a = write(tmp_path / "a", {f"{i}": {"forward": 1, "reversed": 0} for i in range(4)})
    b = write(tmp_path / "b", {f"{i}": {"forward": 1, "reversed": i % 2} for i in range(4)})
    (row,) = compare_runs(a, b, None, None)["rows"]
    assert (row["n"], row["better"], row["worse"]) == (4, 2, 0)
    assert (row["score_a"], row["score_b"]) == (0.5, 0.75)


def test_rewards_are_compared_as_rankings(tmp_path):
    """Whatever the scale of the rewards; an item of which an answer is missing is left out."""
    right, wrong = {"answer0": 9.0, "answer1": -3.0}, {"answer0": -30.0, "answer1": 20.0}
    a = write(tmp_path / "a", {"x": right, "y": wrong, "z": right}, main="reward")
    b = write(tmp_path / "b", {"x": right, "y": right, "z": {"answer0": 1.0}}, main="reward")
    report = compare_runs(a, b, None, None)
    (row,) = report["rows"]
    assert (row["n"], row["score_a"], row["score_b"], row["better"], row["worse"]) == (2, 0.5, 1.0, 1, 0)
    assert report["unpaired"] == 1


def test_what_cannot_be_compared_is_refused(tmp_path):
    a, b = write(tmp_path / "a", {"vt/0": 1}), write(tmp_path / "b", {"fwe/0": 1}, task="fwe")
    with pytest.raises(DataError, match="no arm and sample in common"):
        compare_runs(a, b, None, None)
    with pytest.raises(DataError, match="has no arm 'elastic'; it has full"):
        compare_runs(a, b, "elastic", None)
    with pytest.raises(DataError, match="holds no journal"):
        compare_runs(a, tmp_path / "nowhere", None, None)
    (tmp_path / "b" / "journal.jsonl").write_text(json.dumps([1]) + "\n")
    with pytest.raises(DataError, match="line 1 is no journal record"):
        compare_runs(a, b, None, None)
