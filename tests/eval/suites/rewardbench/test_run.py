"""The verbs of the two reward benchmarks, from settings to the report folder."""

import csv
import dataclasses
import json
import re
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest
from chat_tokenizers import chat_tokenizer
from cheap_tokenizer import CheapTokenizer
from judge_oracles import long_oracle, memory_oracle
from judge_runs import in_shown_order, judge
from tiny import HEADS, tiny_reward_model

from elastic_jax.errors import CheckpointError, ConfigError, DataError
from elastic_jax.reward import ElasticRewardModel
from eval.benchmark import run_benchmark
from eval.harness.backends.reward import ElasticRewardBackend, RewardBackend
from eval.harness.backends.scripted import ScriptedBackend
from eval.samples import Arm, Reply
from eval.suites.rewardbench.memory import GROUPS, SETTINGS
from eval.suites.rewardbench.run import LONG, MEMORY, open_judge
from eval.suites.rewardbench.settings import JudgeSettings
from eval.verbs.rewardbench import long_rewardbench, memory_rewardbench

RECORD = {
    "prompt_template": [{"role": "user", "content": "Who?"}],
    "source": "x",
    "tasktype": "PairWise",
    "subtype": "same",
    "chosen": "Ana",
    "rejected": "Bo",
    "ctx_length_for_length": "4k",
}


@pytest.fixture
def settings() -> JudgeSettings:
    return JudgeSettings(model="toy", views=("full",), lengths=(512,), records=1)


@pytest.fixture
def memory_settings() -> JudgeSettings:
    return JudgeSettings(model="toy", views=("full",), lengths=(3072,), records=1)


def run_with(backend, benchmark, settings, out):
    return run_benchmark(benchmark, settings, out, backend=backend, tokenizer=CheapTokenizer())


def official(path):
    with path.open(newline="") as file:
        return list(csv.reader(file))


def test_long_rewardbench_writes_every_table(settings, tmp_path):
    report = run_with(judge("oracle", long_oracle), LONG.benchmark(settings), settings, tmp_path)
    assert report["done"] == report["wanted"] == 2 * (7 * 2 + 5 * 3)
    assert {row["score"] for row in report["rows"]} == {1.0}
    rows = dict(official(tmp_path / "official-full.csv")[1:])
    assert len(rows) == 21 and rows["AVG."] == rows["Rank Avg,"] == rows["4k"] == "1.0" and rows["8k"] == "0.0"
    figures = json.loads((tmp_path / "judge.json").read_text())["full"]
    assert figures["all"]["match"] == figures["swap"]["all"]["consistency"] == 1
    assert set(figures["by"]) == {"task", "tasktype", "subtype", "length"}
    text = (tmp_path / "results.md").read_text()
    assert "# Long-RewardBench, strict, made-up records" in text and "## full: both orders" in text


def test_a_dry_run_counts_every_showing(settings, tmp_path, capsys):
    said = []
    for orders in ("best-first", "both"):
        asked = dataclasses.replace(settings, orders=orders)
        benchmark = LONG.benchmark(asked)
        run_benchmark(benchmark, asked, tmp_path, dry_run=True, tokenizer=CheapTokenizer())
        said.append(
            int(re.search("about ([0-9,]+) tokens to read in all", capsys.readouterr().out)[1].replace(",", ""))
        )
    assert said[1] == 2 * said[0] > 0


def test_every_arm_has_an_official_table_of_its_own(settings, tmp_path):
    settings = dataclasses.replace(settings, views=("elastic",), router_bias=(-1.0, 1.0), limit=1)
    run_with(judge("A", in_shown_order), LONG.benchmark(settings), settings, tmp_path)
    names = {path.name for path in tmp_path.glob("official-*.csv")}
    assert names == {"official-elastic-bias--1.csv", "official-elastic-bias-+1.csv"}


def test_memory_rewardbench_writes_every_table(memory_settings, tmp_path):
    settings = dataclasses.replace(memory_settings, mode="compat")
    report = run_with(judge("o", memory_oracle), MEMORY.benchmark(settings), settings, tmp_path)
    assert report["done"] == report["wanted"] == len(SETTINGS)
    header, *rows = official(tmp_path / "official-full.csv")
    assert header == ["", *SETTINGS, *GROUPS, "Overall"]
    assert [row[0] for row in rows] == ["8k", "16k", "32k", "64k", "128k", "AVG"]
    assert set(rows[0][1:]) == set(rows[-1][1:]) == {"1.0"} and set(rows[1][1:]) == {"-1.0"}
    figures = json.loads((tmp_path / "judge.json").read_text())["full"]
    assert {value["items"] for value in figures["by"]["setting"].values()} == {1}
    assert set(figures["by"]["criterion"]) == {"process", "outcome", "constraint"}
    assert list(figures["parsers"]) == ["strict5", "last_tag", "first_tag", "last_label", "long_rewardbench"]
    assert figures["swap"] is None


def test_another_mode_or_order_is_refused_in_the_same_folder(settings, tmp_path):
    backend = judge("A", in_shown_order)
    settings = dataclasses.replace(settings, limit=1)
    run_with(backend, LONG.benchmark(settings), settings, tmp_path)
    for changed in ({"mode": "compat"}, {"orders": "best-first"}):
        other = dataclasses.replace(settings, **changed)
        with pytest.raises(DataError, match="was made with other settings"):
            run_with(backend, LONG.benchmark(other), other, tmp_path)


def test_over_long_prompts_are_shortened_or_counted(memory_settings, tmp_path):
    """With a window of 2,400 tokens the texts of some are cut, and trajectories longer than that are not shown."""
    small = ScriptedBackend("small", lambda prompt: "[[A]]", max_tokens=2400)
    settings = dataclasses.replace(memory_settings, max_new_tokens=8)
    run_with(small, MEMORY.benchmark(settings), settings, tmp_path / "strict")
    figures = json.loads((tmp_path / "strict" / "judge.json").read_text())["full"]["all"]
    assert figures["shortened"] > 0 and figures["replies"] == 20
    compat = dataclasses.replace(settings, mode="compat")
    run_with(small, MEMORY.benchmark(compat), compat, tmp_path / "compat")
    figures = json.loads((tmp_path / "compat" / "judge.json").read_text())["full"]["all"]
    assert figures["shortened"] == 0 and figures["failed"]["too_long"] > 5


def test_scalar_rewards_are_reported_as_rankings(settings, tmp_path):
    """Of a model that prefers the conversation with more tokens, in batches of a bounded size."""
    shapes = []

    def score(input_ids, lengths):
        shapes.append(input_ids.shape)
        return np.asarray(lengths, np.float32)

    settings = dataclasses.replace(settings, ask="reward")
    backend = RewardBackend(SimpleNamespace(score=score), identity={"reward": "length"}, max_tokens=None)
    report = run_with(backend, LONG.benchmark(settings), settings, tmp_path)
    assert report["done"] == report["wanted"] == 7 * 2 * 2 + 5 * (2 + 3 + 4)
    assert all(rows * tokens <= max(settings.batch_tokens, tokens) for rows, tokens in shapes)
    assert sum(row["n"] for row in report["rows"]) == 7 * 2 + 5 * 3
    figures = json.loads((tmp_path / "judge.json").read_text())["full"]
    assert list(figures["parsers"]) == ["reward"] and figures["all"]["failed"] == {}
    assert figures["all"]["match"] == float(np.mean([row["score"] for row in report["rows"] for _ in range(row["n"])]))


@pytest.fixture(scope="module")
def reward_checkpoint(tmp_path_factory):
    """A tiny random reward model with a chat tokenizer, as a directory."""
    folder = tmp_path_factory.mktemp("reward") / "model"
    reward_model().save_pretrained(folder)
    chat_tokenizer().save_pretrained(folder)
    return folder


def reward_model() -> ElasticRewardModel:
    return tiny_reward_model(vocab_size=len(chat_tokenizer()), max_position_embeddings=1024)


@pytest.mark.parametrize("verb", [long_rewardbench, memory_rewardbench])
def test_reward_models_are_evaluated_from_the_command_line(verb, reward_checkpoint, tmp_path):
    """The ranking is the one of the model's own scores of the templated conversations."""
    pair = RECORD | {"question": "Who?", "task": "Sequential-Noise", "subtask": "qa1", "ctx_length": "8k"}
    name = "Math" if verb is long_rewardbench else "Long-context_Reasoning"
    (tmp_path / f"{name}.jsonl").write_text(json.dumps(pair) + "\n")
    flags = ["--model", str(reward_checkpoint), "--dtype", "float32", "--data", str(tmp_path), "--ask", "reward"]
    HEADS.save(tmp_path / "heads")
    flags += ["--views", "full,sparse", "--heads", str(tmp_path / "heads"), "--out", str(tmp_path / "out")]
    assert verb(flags) == 0
    report = json.loads((tmp_path / "out" / "results.json").read_text())
    assert report["done"] == report["wanted"] == 6
    assert {row["arm"] for row in report["rows"]} == {"full", "all-sparse", "static heads, MSR 0.50"}
    tokenizer, model = chat_tokenizer(), ElasticRewardModel.from_pretrained(reward_checkpoint, dtype="float32")
    scores = []
    for answer in ("Ana", "Bo"):
        turns = [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": answer}]
        ids = tokenizer.encode(tokenizer.apply_chat_template(turns, tokenize=False), add_special_tokens=False)
        scores.append(float(model(jnp.array([ids]), routing="full")[0]))
    journal = [json.loads(line) for line in (tmp_path / "out" / "journal.jsonl").read_text().splitlines()[1:]]
    found = {line["value"]["showing"]["label"]: line["value"] for line in journal if line["value"]["arm"] == "full"}
    rewards = [found[f"answer{place}"]["scores"]["reward"] for place in range(2)]
    np.testing.assert_allclose(rewards, scores, rtol=1e-4)
    full = [row for row in report["rows"] if row["arm"] == "full"]
    assert [row["score"] for row in full] == [float(scores[0] > scores[1])]


def test_rewards_follow_the_views():
    model = reward_model()
    backend = ElasticRewardBackend(model)
    ids, lengths = np.arange(400).reshape(2, 200) % 300, np.array([200, 150])
    arms = {name: Arm(name, name) for name in ("full", "sparse", "elastic")}
    full, sparse, elastic = (np.asarray(backend.rewards(ids, lengths, arm)) for arm in arms.values())
    assert not np.allclose(full, sparse) and not np.allclose(full, elastic)
    np.testing.assert_allclose(elastic, model(jnp.asarray(ids), lengths=jnp.asarray(lengths)), rtol=1e-5)
    forced = Arm("forced", modes_LK=((1, 1), (1, 1)))
    np.testing.assert_allclose(backend.rewards(ids, lengths, forced), sparse, rtol=1e-5)
    labels = {backend.label(arm) for arm in [*arms.values(), forced]}
    assert len(labels) == 4 and "full" in labels and "elastic" not in labels


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        (["--endpoint", "http://localhost"], "an endpoint gives no scalar reward"),
        (["--cache-bits", "2"], "Leave --cache-bits out"),
    ],
)
def test_settings_that_rewards_do_not_have_are_refused(flags, complaint, reward_checkpoint, tmp_path):
    with pytest.raises(ConfigError, match=complaint):
        long_rewardbench(["--model", str(reward_checkpoint), "--ask", "reward", "--out", str(tmp_path / "out"), *flags])


def test_a_language_model_is_no_reward_model(checkpoint, tokenizer):
    with pytest.raises(CheckpointError, match="score.weight"):
        open_judge(JudgeSettings(model=str(checkpoint), ask="reward"), tokenizer)


def test_real_records_come_from_a_folder(settings, tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "Math.jsonl").write_text(json.dumps(RECORD) + "\n" + json.dumps(RECORD | {"chosen": 3}) + "\n")
    real = dataclasses.replace(settings, data=str(folder))
    with pytest.raises(DataError, match="Math.jsonl:2: field 'chosen'"):
        run_with(judge("A", in_shown_order), LONG.benchmark(real), real, tmp_path / "out")
    (folder / "Math.jsonl").write_text(json.dumps(RECORD) + "\n")
    report = run_with(judge("A", in_shown_order), LONG.benchmark(real), real, tmp_path / "out")
    assert [(row["task"], row["score"]) for row in report["rows"]] == [("Math", 0.5)]


@pytest.mark.parametrize("changes", [{"lengths": ()}, {"lengths": (200_000,)}, {"records": 0}, {"max_new_tokens": 0}])
def test_settings_that_make_no_sense_are_refused(changes):
    with pytest.raises(ConfigError, match=f"{next(iter(changes))} is"):
        JudgeSettings(**changes)


def test_a_choice_is_between_the_letters_after_the_brackets(memory_settings, tmp_path):
    shown = []

    def choose(prompt):
        shown.append(prompt)
        return Reply(numbers={"option_0": -1.0, "option_1": -2.0})

    settings = dataclasses.replace(memory_settings, ask="choice")
    run_with(ScriptedBackend("c", choose), MEMORY.benchmark(settings), settings, tmp_path)
    assert all(len(prompt.option_ids) == 2 and prompt.answer_prefix == "[[" for prompt in shown)
    figures = json.loads((tmp_path / "judge.json").read_text())["full"]
    assert figures["swap"]["all"]["flip_first"] == len(SETTINGS) and figures["all"]["match"] == 0.5
