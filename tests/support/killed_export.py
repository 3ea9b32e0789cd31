"""Exports that are there to be killed: `python FILE DIRECTORY SOURCE SEED ...`, of tiny models drawn from the seeds.

Writes each format over the one before, for one seed after the other, and prints a line when it begins. A last word
`again` starts over when all are written, until somebody ends the process.
"""

import itertools
import sys
from pathlib import Path

import jax.numpy as jnp
from tiny import tiny_model

from elastic_jax.reward import ElasticRewardModel
from elastic_jax.weights import save_pretrained


def export(seed: int, source: str, directory: Path) -> None:
    model = tiny_model(seed)
    model.source = source
    save_pretrained(model, directory / "hf", max_shard_bytes=20_000, overwrite=True)
    save_pretrained(model, directory / "elastic", format="elastic", overwrite=True)
    save_pretrained(model, directory / "router", format="router", overwrite=True)
    head = jnp.full((model.config.hidden_size, 1), seed, jnp.float32)
    ElasticRewardModel(tiny_model(seed, tie_word_embeddings=True), head, model.config).save_pretrained(
        directory / "reward", overwrite=True
    )


def main(directory: str, source: str, *words: str) -> None:
    again = words[-1] == "again"
    seeds = [int(word) for word in words[: len(words) - again]]
    print("begins", flush=True)
    for seed in itertools.cycle(seeds) if again else seeds:
        export(seed, source, Path(directory))


if __name__ == "__main__":
    main(*sys.argv[1:])
