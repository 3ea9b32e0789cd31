"""The compiled programs of an engine: rows are filled, read on, taken out, copied, packed.

Each program that changes the cache takes it as a donated argument and returns it changed. A row is taken out as the
arrays that are its own; pages are not among them, as rows share those by number.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from elastic_jax.generation import Cache, read_tokens
from elastic_jax.kv_cache.dense import DenseCache
from elastic_jax.kv_cache.quantized import QuantizedCache, fill_rows
from elastic_jax.sampling import RowSampling, next_tokens

Row = dict[str, jax.Array]
"""Fields of a cache without their axis of rows."""

_OWN = {
    DenseCache: ("k", "v", "mode"),
    QuantizedCache: ("table", "exact_k", "exact_v", "outlier_pos", "score", "frozen", "mode"),
}


@jax.jit
def take_row(cache: Cache, row: jax.Array) -> Row:
    """A copy of what is the row's own."""
    fields = _OWN[type(cache)]
    return {name: lax.dynamic_index_in_dim(getattr(cache, name), row, 1, keepdims=False) for name in fields}


def _put_row[C: Cache](cache: C, row: jax.Array, values: Row) -> C:
    """The cache with a row replaced; lengths are the caller's."""

    def put(x: jax.Array, new: jax.Array) -> jax.Array:
        return lax.dynamic_update_index_in_dim(x, new.astype(x.dtype), row, 1)

    return replace(cache, **{name: put(getattr(cache, name), new) for name, new in values.items()})


put_row = jax.jit(_put_row, donate_argnums=0)


@partial(jax.jit, donate_argnums=0)
def copy_row(state: Cache, source: jax.Array, target: jax.Array) -> Cache:
    """Copies a row over another."""
    return _put_row(state, target, take_row(state, source))


@partial(jax.jit, donate_argnums=0)
def put_prompt_dense(
    cache: DenseCache, kv: tuple[jax.Array, jax.Array], length: jax.Array, row: jax.Array, mode_LK: jax.Array
) -> DenseCache:
    """Replaces a row by a prompt of `length` tokens with keys and values `[L, 1, T, K, H]`."""
    capacity = cache.k.shape[3]
    one = DenseCache.from_prefill(kv, length[None], mode_LK[:, None], capacity, cache.spec)
    return _put_row(cache, row, take_row(one, jnp.int32(0)))


@partial(jax.jit, donate_argnums=0)
def put_prompt_quantized(
    cache: QuantizedCache,
    kv: tuple[jax.Array, jax.Array],
    length: jax.Array,
    row: jax.Array,
    mode_LK: jax.Array,
    table_LKJ: jax.Array,
) -> QuantizedCache:
    """Replaces a row by a prompt like `put_prompt_dense`; groups go to the pages of the table, if not negative."""
    one = fill_rows(
        cache.pages, kv, length[None], mode_LK[:, None], table_LKJ[:, None], cache.ring, cache.config, cache.spec
    )
    return _put_row(replace(cache, pages=one.pages), row, take_row(one, jnp.int32(0)))


@partial(jax.jit, donate_argnums=0)
def flush_rows(cache: QuantizedCache, rows: jax.Array, count: jax.Array, pages_RLK: jax.Array) -> QuantizedCache:
    """Flushes the oldest group of the first `count` of `rows`, of each into the pages given for it."""

    def flush(i: jax.Array, cache: QuantizedCache) -> QuantizedCache:
        row = rows[i]
        group = cache.quantized[row] // cache.config.group
        place = (jnp.int32(0), row, jnp.int32(0), group)
        table = lax.dynamic_update_slice(cache.table, pages_RLK[i][:, None, :, None], place)
        return replace(cache, table=table).flush(row)

    return lax.fori_loop(0, count, flush, cache)


@partial(jax.jit, static_argnums=0, donate_argnums=2)
def read(
    graph: Any, params: Any, state: Cache, tokens_BT: jax.Array, counts_B: jax.Array, sampling: RowSampling
) -> tuple[Cache, jax.Array, jax.Array]:
    """Reads up to T tokens of every row: the cache, logits float32 `[B, T, V]`, and what is drawn from each."""
    state, logits_BTV = read_tokens(nnx.merge(graph, params), state, tokens_BT, counts_B)
    return state, logits_BTV, next_tokens(logits_BTV, sampling)


@jax.jit
def first_tokens(logits_1V: jax.Array, sampling: RowSampling) -> jax.Array:
    """What is drawn after a prompt, int32 `[1, 1]`."""
    return next_tokens(logits_1V[:, None], sampling)


@partial(jax.jit, static_argnames="most")
def log_probabilities(
    logits_BTV: jax.Array, row: jax.Array, tokens_T: jax.Array, *, most: int
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Log-probabilities float32 `[T]` of the tokens of one row, and of the `most` most likely ones with their ids."""
    logp_TV = jax.nn.log_softmax(logits_BTV[row].astype(jnp.float32))
    chosen_T = jnp.take_along_axis(logp_TV, tokens_T[:, None], axis=-1)[:, 0]
    return chosen_T, *lax.top_k(logp_TV, most)


@partial(jax.jit, static_argnames="most")
def best_continuations(
    logits: jax.Array, rows_W: jax.Array, column: jax.Array, scores_W: jax.Array, *, most: int
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The `most` best next tokens of W beams, best first: total log-probability, beam, token.

    `logits` is `[1, V]` after a prompt or `[B, T, V]` of a step, of which each beam takes a row at `column`.
    """
    logits_BTV = logits[:, None] if logits.ndim == 2 else logits
    total_WV = scores_W[:, None] + jax.nn.log_softmax(logits_BTV[rows_W, column])
    scores, flat = jax.lax.top_k(total_WV.reshape(-1), most)
    return scores, flat // total_WV.shape[1], flat % total_WV.shape[1]
