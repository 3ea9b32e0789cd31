"""A calibration of a tiny random model on random tokens, for the tests of heads."""

from dataclasses import replace
from pathlib import Path

import numpy as np
from tiny import CONFIG, tiny_model

from train.heads.run import calibrate_heads
from train.heads.samples import SCORED, Batch
from train.heads.settings import (
    HeadsDataConfig,
    HeadsOptimConfig,
    HeadsRunConfig,
    HeadsTrainConfig,
    SettleConfig,
    SparseConfig,
)

MODEL = {"num_layers": 3, "num_kv_heads": 2}


class RandomSamples:
    """Random tokens in place of texts; the last eighth of each sample is scored."""

    def __init__(self, seed: int = 0):
        self.seed = seed

    def batch(self, number: int, rows: int, length: int, side: int = 0) -> Batch:
        rng = np.random.default_rng([self.seed, side, length, number])
        ids = rng.integers(0, CONFIG.vocab_size, (rows, length)).astype(np.int32)
        positions, weights = np.zeros((rows, SCORED), np.int32), np.zeros((rows, SCORED), np.float32)
        scored = np.arange(length - length // 8, length - 1)
        positions[:, : len(scored)], weights[:, : len(scored)] = scored, 1.0
        lengths = np.full(rows, length, np.int32)
        return Batch(ids, lengths, positions, weights, np.int32(0))

    def digest(self) -> str:
        return f"random tokens {self.seed}"


def tiny_heads_config(**changes) -> HeadsTrainConfig:
    config = HeadsTrainConfig(
        sparse=SparseConfig(block_size=16),
        target_msr=0.5,
        least_answered=0.0,
        data=HeadsDataConfig(min_tokens=256, max_tokens=256),
        optim=HeadsOptimConfig(steps=10, start=1.0, learning_rate=0.2, price=0.01),
        settle=SettleConfig(samples=1, swaps=3, msr=(0.5, 0.7)),
        run=HeadsRunConfig(save_every=3),
    )
    return replace(config, **changes)


def main(directory: str) -> int:
    """Calibrates in `directory`."""
    calibrate_heads(tiny_heads_config(), tiny_model(**MODEL), RandomSamples(), Path(directory))
    return 0
