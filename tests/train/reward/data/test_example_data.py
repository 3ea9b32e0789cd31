import json

import pytest
from cheap_tokenizer import CheapTokenizer

from elastic_jax.errors import ConfigError, DataError, InUseError
from elastic_jax.files import FileLock
from eval.benchmark import run_benchmark
from eval.harness.backends.reward import RewardBackend
from eval.suites.rewardbench.long import read_folder
from eval.suites.rewardbench.run import LONG
from eval.suites.rewardbench.settings import JudgeSettings
from train.reward.data.readers import read_judge_records, read_preferences
from train.reward.examples.benchmark_file import write_long_rewardbench
from train.reward.examples.generate import records
from train.verbs.example_data import main

SMALL = ["--train", "6", "--held-out", "3", "--pairs", "8", "--rankings", "2"]


def test_every_file_can_be_read_by_its_reader(tmp_path):
    assert main([*SMALL, "--out", str(tmp_path)]) == 0
    answers, _ = read_preferences(tmp_path / "answers_train.jsonl")
    assert answers == records(6, 0, rejects=2)
    assert len(read_preferences(tmp_path / "judge_preferences_held_out.jsonl")[0]) == 3
    assert [len(read_judge_records(tmp_path / f"judge_{name}.jsonl")[0]) for name in ("train", "held_out")] == [6, 3]
    (items,) = read_folder(tmp_path / "long-rewardbench").values()
    assert len(items) == 8 + 3 * 2 and sorted(len(item.answers) for item in items if item.ranking) == [2, 2, 3, 3, 4, 4]
    held_out = {record.prompt[-1].content for record in read_preferences(tmp_path / "answers_held_out.jsonl")[0]}
    assert not held_out & {item.question for item in items}


def test_a_second_process_is_refused(tmp_path):
    with FileLock(tmp_path / ".lock", tmp_path), pytest.raises(InUseError, match="in use by process"):
        main([*SMALL, "--out", str(tmp_path)])
    assert not list(tmp_path.iterdir())


class Knowing:
    """Prefers the longest answer that no flaw marks: an oracle that has seen the file."""

    def __init__(self, best):
        self.best = best

    def score(self, input_ids, lengths):
        texts = [bytes(ids[:n].tolist()) for ids, n in zip(input_ids, lengths, strict=True)]
        return [float(any(text.endswith(answer) for answer in self.best)) for text in texts]


class ByteTokenizer(CheapTokenizer):
    """One token for each byte, so that a judge can read the text."""

    def __call__(self, text, **options):
        return {"input_ids": list(text.encode())}

    def apply_chat_template(self, turns, **_):
        return "\n".join(turn["content"] for turn in turns)


def test_a_judge_that_knows_the_right_answers_gets_every_pair(tmp_path):
    pairs = records(12, 1, "evaluation")
    write_long_rewardbench(tmp_path, pairs, pairs[:2], seed=0)
    backend = RewardBackend(Knowing([r.chosen.encode() for r in pairs]), identity={"oracle": 1}, max_tokens=None)
    settings = JudgeSettings(model="toy", views=("full",), data=str(tmp_path), ask="reward")
    run_benchmark(LONG.benchmark(settings), settings, tmp_path / "out", backend=backend, tokenizer=ByteTokenizer())
    figures = json.loads((tmp_path / "out" / "judge.json").read_text())["full"]
    by_kind = figures["by"]["subtype"]
    assert {kind for record in pairs for kind in record.kinds} <= set(by_kind)
    assert all(by_kind[kind]["match"] == 1 for record in pairs for kind in record.kinds)
    assert by_kind["2"]["match"] == 1 and by_kind["4"]["top1"] == 1


def test_nothing_to_write_is_refused(tmp_path):
    with pytest.raises(DataError, match="no record to write"):
        write_long_rewardbench(tmp_path, [], [], 0)
    with pytest.raises(ConfigError, match="train is 0"):
        main(["--train", "0", "--out", str(tmp_path)])
