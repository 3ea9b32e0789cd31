"""Bytes of caches, counted before any is allocated."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from elastic_jax.errors import ConfigError
from elastic_jax.kv_cache.config import BITS, CacheConfig
from elastic_jax.kv_cache.pages import plan_pages, tree_bytes
from elastic_jax.kv_cache.quantized import QuantizedCache, ring_slots
from pallas_kernels.schedule import AttentionSpec


def quantized_bytes(
    mode_LBK: np.ndarray, lengths_B: np.ndarray, head_dim: int, itemsize: int, config: CacheConfig, spec: AttentionSpec
) -> int:
    """All arrays of a `QuantizedCache` with room for rows of `lengths_B` tokens.

    Args:
        mode_LBK: which heads are sparse.
        itemsize: bytes of an element of the exact tokens.
    """
    plan = plan_pages(mode_LBK, lengths_B, config, spec)
    blank = partial(
        QuantizedCache.blank,
        (*mode_LBK.shape, head_dim),
        ring=ring_slots(len(lengths_B), config),
        groups=plan.table.shape[-1],
        pages=plan.pages,
        dtype=jnp.dtype(f"float{8 * itemsize}"),
        config=config,
        spec=spec,
    )
    return tree_bytes(jax.eval_shape(blank))


def most_that_fits(limit: int, fits: Callable[[int], bool]) -> int:
    """The largest count up to `limit` that fits, where every smaller one does too; 0 for none."""
    return bisect_left(range(1, limit + 1), True, key=lambda count: not fits(count))


def check_limit(
    limit_mib: float, cache: CacheConfig, bytes_of: Callable[[CacheConfig, int, int], int], rows: int, tokens: int
) -> None:
    """Raises `ConfigError`, with what would fit, where `rows` rows of up to `tokens` tokens exceed the limit.

    Args:
        bytes_of: bytes of a cache of so many rows and tokens.
    """
    need, limit = bytes_of(cache, rows, tokens), limit_mib * 2**20
    if need <= limit:
        return

    ways = []
    for bits in sorted((b for b in BITS if b < cache.bits), reverse=True):
        smaller = bytes_of(replace(cache, bits=bits), rows, tokens)
        if smaller <= limit:
            ways.append(f"cache bits {bits} ({_mib(smaller)})")
            break
    fewer_rows = most_that_fits(rows - 1, lambda n: bytes_of(cache, n, tokens) <= limit)
    fewer_tokens = most_that_fits(tokens - 1, lambda n: bytes_of(cache, rows, n) <= limit)
    if fewer_rows:
        ways.append(f"{fewer_rows} row(s) of that length")
    if fewer_tokens:
        ways.append(f"prompt and new tokens up to {fewer_tokens} in every row")
    if not fewer_rows and not fewer_tokens:
        alone = most_that_fits(tokens - 1, lambda n: bytes_of(cache, 1, n) <= limit)
        ways += [f"one row of up to {alone} tokens"] if alone else []
    fit = f"What would fit: {', or '.join(ways)}." if ways else "Not even one row of one token would fit."
    raise ConfigError(
        f"the cache of {rows} row(s) of up to {tokens} tokens needs {need} bytes ({_mib(need)}); the limit is "
        f"{limit_mib} MiB. {fit}"
    )


def _mib(size: int) -> str:
    return f"{size / 2**20:.1f} MiB"
