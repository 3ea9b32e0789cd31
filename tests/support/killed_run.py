"""Runs that are there to be killed: `python FILE router|reward|heads DIRECTORY`, on the tiny model, with evaluation.

As small as `train_run`, with a checkpoint every second step, so that a kill often meets a save.
"""

import sys
from pathlib import Path

import heads_run
import numpy as np
import train_run
from tiny import CONFIG, tiny_model, tiny_reward_model

from train.heads.run import calibrate_heads
from train.heads.settings import HeadsRunConfig
from train.reward.config import AdamConfig, BradleyTerryTrainConfig, PairDataConfig, RewardRunConfig
from train.reward.data.pairs import PairSample
from train.reward.dataset import Data
from train.reward.run import train


def router(directory: str) -> None:
    evaluated = ("data.held_out=0.25", "run.eval_every=3", "run.save_every=2", "run.export=[router, elastic]")
    assert train_run.main(directory, *evaluated) == 0


def reward(directory: str) -> None:
    rng = np.random.default_rng(0)

    def pair() -> PairSample:
        prompt, good, bad = (rng.integers(0, CONFIG.vocab_size, size).astype(np.int32) for size in (20, 6, 5))
        return PairSample(prompt, (good, bad), 0.0)

    data = Data([pair() for _ in range(12)], [pair() for _ in range(4)], "")
    config = BradleyTerryTrainConfig(
        dtype="float32",
        optim=AdamConfig(steps=20, rows=2, accumulate=1, learning_rate=1e-2),
        data=PairDataConfig(prompt_tokens=32, response_tokens=8, rejects=1),
        run=RewardRunConfig(save_every=2, eval_every=3),
    )
    train(config, tiny_reward_model(), data, Path(directory))


def heads(directory: str) -> None:
    config = heads_run.tiny_heads_config(run=HeadsRunConfig(save_every=2, eval_every=3))
    calibrate_heads(config, tiny_model(**heads_run.MODEL), heads_run.RandomSamples(), Path(directory))


if __name__ == "__main__":
    {"router": router, "reward": reward, "heads": heads}[sys.argv[1]](sys.argv[2])
