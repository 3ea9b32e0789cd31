"""Whole runs: what is measured, the exported model, and settings that cannot work; going on: verbs/test_every_flag."""

import json
from dataclasses import replace
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from tiny import CONFIG, tiny_model

from elastic_jax.errors import ConfigError
from elastic_jax.reward import ElasticRewardModel
from train.data.packing import Sample, make_sample
from train.reward.config import (
    AdamConfig,
    BradleyTerryTrainConfig,
    JudgeDataConfig,
    LoraConfig,
    PairDataConfig,
    RewardRunConfig,
    SftConfig,
    SimpoTrainConfig,
)
from train.reward.data.pairs import PairSample
from train.reward.dataset import Data
from train.reward.run import HELD_OUT_FILE, train

COMMON = {
    "dtype": "float32",
    "remat": False,
    "optim": AdamConfig(steps=4, rows=2, accumulate=2, learning_rate=1e-2, warmup=0.0),
    "run": RewardRunConfig(save_every=2, keep=9),
}
PAIRS = PairDataConfig(prompt_tokens=32, response_tokens=8, rejects=1)
CONFIGS = {
    "bt": BradleyTerryTrainConfig(**COMMON, lora=LoraConfig(rank=2), data=PAIRS),
    "simpo": SimpoTrainConfig(**{**COMMON, "optim": replace(COMMON["optim"], steps=8, learning_rate=2e-3)}, data=PAIRS),
    "sft": SftConfig(**COMMON, data=JudgeDataConfig(row_length=64, max_segments=3)),
}


def pairs(count: int, seed: int) -> list[PairSample]:
    """Chosen responses are made of low tokens, rejected ones of high tokens."""
    rng = np.random.default_rng(seed)

    def tokens(low: int, high: int, most: int) -> np.ndarray:
        return rng.integers(low, high, rng.integers(1, most + 1)).astype(np.int32)

    return [PairSample(tokens(0, 64, 32), (tokens(0, 24, 8), tokens(40, 64, 8)), 0.0) for _ in range(count)]


def judgement(pair: PairSample) -> Sample:
    return make_sample(np.concatenate([pair.prompt_ids, pair.response_ids[0]]), len(pair.prompt_ids))


def data_of(kind: str) -> Data:
    train_pairs, held_out = pairs(12, 0), pairs(5, 1)
    if kind == "sft":
        sides = [[judgement(pair) for pair in side] for side in (train_pairs, held_out)]
        return Data(*sides, "")
    return Data(train_pairs, held_out, "")


def model_of(kind: str):
    if kind != "bt":
        return tiny_model()
    return ElasticRewardModel(tiny_model(tie_word_embeddings=True), jnp.zeros((CONFIG.hidden_size, 1)), replace(CONFIG))


def check_run(kind: str, directory: Path) -> dict[str, dict[str, float]]:
    """Trains, and looks that the measures are written and that the model learnt."""
    results = train(CONFIGS[kind], model_of(kind), data_of(kind), directory)
    assert json.loads((directory / HELD_OUT_FILE).read_text()) == results
    assert results["after"]["loss"] < results["before"]["loss"]
    return results


def test_a_reward_model_learns_and_scores_alike_after_export(tmp_path) -> None:
    results = check_run("bt", tmp_path)
    exported = ElasticRewardModel.from_pretrained(tmp_path / "hf", dtype="float32")
    scores = [
        [float(exported.score(np.concatenate([pair.prompt_ids, ids])[None])[0]) for ids in pair.response_ids]
        for pair in data_of("bt").held_out
    ]
    margins = [chosen - rejected for chosen, rejected in scores]
    assert np.mean(margins) == pytest.approx(results["after"]["margin"], rel=1e-3, abs=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["simpo", "sft"])
def test_judges_learn(kind: str, tmp_path) -> None:
    check_run(kind, tmp_path)


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        ("bt", {"data": replace(PAIRS, prompt_tokens=40)}, "multiple of 16"),
        ("simpo", {"data": replace(PAIRS, prompt_tokens=512)}, "520 tokens.*512 positions"),
        ("sft", {"data": JudgeDataConfig(row_length=40)}, "multiple of 16"),
    ],
)
def test_lengths_that_do_not_fit_are_refused_before_anything_is_written(kind, changes, message, tmp_path) -> None:
    with pytest.raises(ConfigError, match=message):
        train(replace(CONFIGS[kind], **changes), model_of(kind), data_of(kind), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_one_pass_over_the_data_is_the_default_number_of_steps() -> None:
    from train.reward.dataset import judge_stream, pair_stream

    assert pair_stream(data_of("simpo"), CONFIGS["simpo"]).per_epoch == 3
    batches = judge_stream(data_of("sft"), CONFIGS["sft"], block_size=16)
    assert 1 <= batches.per_epoch <= 3
    assert sum(int((rows.task_ids >= 0).sum()) for rows in batches.held_out) == 5
    assert {rows.input_ids.shape[0] for rows in batches.held_out} == {2}
