"""A decoder small enough for every test: 2 layers, blocks of 16 tokens, 1 sink and 2 local blocks."""

import dataclasses
import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from elastic_jax.config import ModelConfig, RouterConfig
from elastic_jax.heads import Heads
from elastic_jax.model import ElasticForCausalLM, from_params, param_shapes
from elastic_jax.reward import ElasticRewardModel
from elastic_jax.weights import save_pretrained

CONFIG = ModelConfig(
    family="llama",
    vocab_size=64,
    hidden_size=32,
    intermediate_size=48,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    max_position_embeddings=512,
    initializer_range=0.2,
    router=RouterConfig(block_size=16, sink_blocks=1, local_blocks=2, pool_window=20),
)


HEADS = Heads(np.array([[3, 0], [1, 2]]), CONFIG.router, msr=0.5)
"""Calibrated heads of it: one full head in each layer."""


def tiny_model(seed: int = 0, **changes) -> ElasticForCausalLM:
    """A model of its own for each caller, with random float32 weights; routers are so wide that heads disagree.

    NumPy draws the weights once per session: the initialisers of the model would compile a program for each shape.
    """
    graph, state = _drawn(dataclasses.replace(CONFIG, **changes), seed)
    return nnx.merge(graph, jax.tree.map(jnp.array, state))


def tiny_reward_model(**changes) -> ElasticRewardModel:
    """The tiny model with a random score head."""
    head = np.random.default_rng(3).standard_normal((CONFIG.hidden_size, 1), np.float32)
    decoder = tiny_model(tie_word_embeddings=True, **changes)
    return ElasticRewardModel(decoder, jnp.asarray(head), dataclasses.replace(CONFIG, **changes))


@functools.cache
def _drawn(config: ModelConfig, seed: int) -> tuple[nnx.GraphDef, nnx.State]:
    rng = np.random.default_rng(seed)

    def draw(path: str, shape: tuple[int, ...]) -> np.ndarray:
        if not path.endswith(("kernel", "embedding")):
            return np.full(shape, path.endswith("scale"), np.float32)
        width = 4 if "router.head.fc3.kernel" in path else 1
        return np.float32(width * config.initializer_range * rng.standard_normal(shape))

    params = {path: draw(path, spec.shape) for path, spec in param_shapes(config, jnp.float32).items()}
    graph, state = nnx.split(from_params(config, params))
    return graph, jax.tree.map(np.asarray, state)


def write_checkpoint(folder: Path, tokenizer, **changes) -> Path:
    """A tiny model with routers beside its tokenizer, as a directory."""
    save_pretrained(tiny_model(vocab_size=len(tokenizer), **changes), folder, format="elastic")
    tokenizer.save_pretrained(folder)
    return folder


def random_ids(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    """In numpy, whose slices compile nothing."""
    return np.random.default_rng(seed).integers(0, CONFIG.vocab_size, shape).astype(np.int32)
