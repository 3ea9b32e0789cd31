"""Bytes and decode speed of caches of every kind, timed in turns in one run.

Caches are blank but of full size: what decoding costs does not depend on what the tokens are. Rows end at different
places of a group, so that the packing of groups falls evenly on the steps, as in a server.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from elastic_jax.config import ModelConfig
from elastic_jax.generation import Cache, decode_step, make_cache
from elastic_jax.kv_cache import CacheConfig
from elastic_jax.kv_cache.outliers import EMPTY
from elastic_jax.kv_cache.pages import plan_pages, quantized_tokens, tree_bytes
from elastic_jax.kv_cache.quantized import QuantizedCache
from elastic_jax.kv_cache.size import most_that_fits
from elastic_jax.model import ElasticForCausalLM


@dataclass(frozen=True)
class Plan:
    """Sizes of a cache to be timed."""

    config: CacheConfig
    mode_LK: np.ndarray
    """Which heads are sparse, the same in every row."""
    rows: int
    tokens: int
    """Of the longest row when the timing begins."""
    room: int
    """Tokens that will be added."""

    @property
    def lengths_B(self) -> np.ndarray:
        """Rows spread over one group."""
        return self.tokens - np.arange(self.rows) * self.config.group // self.rows

    @property
    def mode_LBK(self) -> np.ndarray:
        return np.repeat(self.mode_LK[:, None], self.rows, axis=1)


def cache_shapes(plan: Plan, config: ModelConfig, dtype: jnp.dtype) -> Cache:
    """The cache with shapes in place of arrays; nothing is allocated."""
    shape = (config.num_layers, plan.rows, plan.tokens, config.num_kv_heads, config.head_dim)
    kv, mode = (jax.ShapeDtypeStruct(shape, dtype),) * 2, jnp.asarray(plan.mode_LBK)
    return jax.eval_shape(lambda kv: make_cache(plan.config, config, kv, plan.lengths_B, mode, plan.room), kv)


def blank_cache(plan: Plan, config: ModelConfig, dtype: jnp.dtype) -> Cache:
    """A cache of blank tokens as it is after prompts of `plan.lengths_B` tokens."""
    shapes = cache_shapes(plan, config, dtype)
    blank = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    lengths, mode = jnp.asarray(plan.lengths_B, jnp.int32), jnp.asarray(plan.mode_LBK, jnp.int8)
    blank = replace(blank, lengths=lengths, mode=mode)
    if not isinstance(blank, QuantizedCache):
        return blank
    table = plan_pages(plan.mode_LBK, plan.lengths_B + plan.room, plan.config, blank.spec).table
    return replace(
        blank,
        table=jnp.asarray(table),
        quantized=quantized_tokens(lengths, plan.config),
        outlier_pos=jnp.full_like(blank.outlier_pos, EMPTY),
    )


def largest_batch(plan: Plan, config: ModelConfig, dtype: jnp.dtype, budget: int) -> int:
    """Most rows whose cache takes at most `budget` bytes; 0 if not even one row does."""

    def fits(rows: int) -> bool:
        return tree_bytes(cache_shapes(replace(plan, rows=rows), config, dtype)) <= budget

    too_many = 1
    while fits(too_many):
        too_many *= 2
    return most_that_fits(too_many - 1, fits)


def stepper(model: ElasticForCausalLM, cache: Cache, steps: int) -> Callable[[], float]:
    """A function that decodes `steps` more tokens of every row, greedily, and returns the seconds of one step."""
    graph, weights = nnx.split(model)
    run = jax.jit(partial(_decode_steps, graph, steps), donate_argnums=1)
    state = (cache, jnp.zeros(cache.lengths.shape, jnp.int32))

    def once() -> float:
        nonlocal state
        start = time.perf_counter()
        state = jax.block_until_ready(run(weights, *state))
        return (time.perf_counter() - start) / steps

    return once


def _decode_steps(
    graph: nnx.GraphDef, steps: int, weights: nnx.State, cache: Cache, token_B: jax.Array
) -> tuple[Cache, jax.Array]:
    model = nnx.merge(graph, weights)

    def step(_: int, carry: tuple[Cache, jax.Array]) -> tuple[Cache, jax.Array]:
        cache, logits_BV = decode_step(model, *carry)
        return cache, logits_BV.argmax(-1).astype(jnp.int32)

    return jax.lax.fori_loop(0, steps, step, (cache, token_B))
