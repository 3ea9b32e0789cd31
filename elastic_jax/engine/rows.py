"""Rows of a cache that serves many requests: a prompt put into one, one taken out, one flushed.

A row is taken out as the arrays that are its own. Pages are not among them: rows share those by number.
"""

from __future__ import annotations

from dataclasses import replace

import jax
import jax.numpy as jnp
from jax import lax

from elastic_jax.kv_cache.dense import DenseCache
from elastic_jax.kv_cache.quantized import QuantizedCache, fill_rows

Row = dict[str, jax.Array]
"""Fields of a cache without their axis of rows."""

_OWN = {
    DenseCache: ("k", "v", "mode"),
    QuantizedCache: ("table", "exact_k", "exact_v", "outlier_pos", "score", "frozen", "mode"),
}


def take_row(cache: DenseCache | QuantizedCache, row: jax.Array) -> Row:
    """A copy of what is the row's own."""
    fields = _OWN[type(cache)]
    return {name: lax.dynamic_index_in_dim(getattr(cache, name), row, 1, keepdims=False) for name in fields}


def put_row[C: DenseCache | QuantizedCache](cache: C, row: jax.Array, values: Row) -> C:
    """The cache with a row replaced; lengths are the caller's."""

    def put(x: jax.Array, new: jax.Array) -> jax.Array:
        return lax.dynamic_update_index_in_dim(x, new.astype(x.dtype), row, 1)

    return replace(cache, **{name: put(getattr(cache, name), new) for name, new in values.items()})


def put_prompt_dense(
    cache: DenseCache, kv: tuple[jax.Array, jax.Array], length: jax.Array, row: jax.Array, mode_LK: jax.Array
) -> DenseCache:
    """Replaces a row by a prompt of `length` tokens with keys and values `[L, 1, T, K, H]`."""
    capacity = cache.k.shape[3]
    one = DenseCache.from_prefill(kv, length[None], mode_LK[:, None], capacity, cache.spec)
    return put_row(cache, row, take_row(one, jnp.int32(0)))


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
    return put_row(replace(cache, pages=one.pages), row, take_row(one, jnp.int32(0)))


def flush_rows(cache: QuantizedCache, rows: jax.Array, count: jax.Array, pages_RLK: jax.Array) -> QuantizedCache:
    """Flushes the oldest group of the first `count` of `rows`, of each into the pages given for it."""

    def flush(i: jax.Array, cache: QuantizedCache) -> QuantizedCache:
        row = rows[i]
        group = cache.quantized[row] // cache.config.group
        place = (jnp.int32(0), row, jnp.int32(0), group)
        table = lax.dynamic_update_slice(cache.table, pages_RLK[i][:, None, :, None], place)
        return replace(cache, table=table).flush(row)

    return lax.fori_loop(0, count, flush, cache)
