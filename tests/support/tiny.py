"""A decoder small enough for every test: 2 layers, blocks of 16 tokens, 1 sink and 2 local blocks."""

import dataclasses

import jax.numpy as jnp
import numpy as np
from flax import nnx

from elastic_jax.config import ModelConfig, RouterConfig
from elastic_jax.model import ElasticForCausalLM, from_params, to_params

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


def tiny_model(seed: int = 0, **changes) -> ElasticForCausalLM:
    """Random float32 weights; routers wide enough apart that heads disagree."""
    config = dataclasses.replace(CONFIG, **changes)
    model = ElasticForCausalLM(config, dtype=jnp.float32, rngs=nnx.Rngs(seed))
    params = to_params(model)
    params = {path: 4 * x if "router.head.fc3.kernel" in path else x for path, x in params.items()}
    return from_params(config, params)


def random_ids(shape: tuple[int, ...], seed: int = 0) -> jnp.ndarray:
    return jnp.asarray(np.random.default_rng(seed).integers(0, CONFIG.vocab_size, shape), jnp.int32)
