"""A whole router training run on a tiny random model, shared by the loop's tests; run as a script it can be killed."""

import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
from overridden import overridden
from tiny import CONFIG, tiny_model

from elastic_jax.settings import settings_yaml
from train.config import DataConfig, OptimConfig, RouterTrainConfig, RunConfig
from train.data.packing import Sample
from train.loop.distributed import start
from train.loop.trouble import Interrupted
from train.router.run import train_router

STEPS = 20


def tiny_config(**changes) -> RouterTrainConfig:
    config = RouterTrainConfig(
        dtype="float32",
        router=CONFIG.router,
        data=DataConfig(row_length=128, max_segments=3),
        optim=OptimConfig(steps=STEPS, accumulate=2, learning_rate=1e-2),
        run=RunConfig(save_every=6),
    )
    return replace(config, **changes)


def tiny_samples(count: int = 12) -> list[Sample]:
    rng = np.random.default_rng(5)
    samples = []
    for index in range(count):
        size = int(rng.integers(40, 120))
        ids = rng.integers(0, CONFIG.vocab_size, size).astype(np.int32)
        weights = np.append(np.full(size - 1, 1 / (size - 1)), 0).astype(np.float32)
        labels = np.append(ids[1:], 0).astype(np.int32)
        prompt = np.array([size // 2], np.int32)
        samples.append(Sample(ids, labels, weights, prompt, np.array([index % 5], np.int32)))
    return samples


def main(directory: str, *overrides: str) -> int:
    """Trains in `directory` with `tiny_config()` and overrides of its settings."""
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
        file.write(settings_yaml(tiny_config()))
        file.flush()
        config = overridden(RouterTrainConfig, file.name, overrides)
    start(config.distributed, config.run)
    try:
        train_router(config, tiny_model(), tiny_samples(), Path(directory))
    except Interrupted as stopped:
        print(stopped, file=sys.stderr)
        return stopped.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
