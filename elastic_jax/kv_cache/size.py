"""Bytes of caches, counted before any is allocated."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from elastic_jax.errors import ConfigError
from elastic_jax.kv_cache.config import BITS, CacheConfig
from elastic_jax.kv_cache.pages import plan_pages
from elastic_jax.kv_cache.quantized import ring_slots
from pallas_kernels.schedule import AttentionSpec


def page_bytes(head_dim: int, config: CacheConfig) -> int:
    """One group of one KV head: codes, scales and zeros of keys and values, holes, and token norms where kept."""
    group, channel_groups = config.group, head_dim // min(config.group, head_dim)
    codes = 2 * group * head_dim * config.bits // 8
    scales_and_zeros = 4 * head_dim + 4 * group * channel_groups
    return codes + scales_and_zeros + group // 8 + (2 * group if config.normalizes else 0)


def quantized_bytes(
    mode_LBK: np.ndarray, lengths_B: np.ndarray, head_dim: int, itemsize: int, config: CacheConfig, spec: AttentionSpec
) -> int:
    """All arrays of a `QuantizedCache` with room for rows of `lengths_B` tokens.

    Args:
        mode_LBK: which heads are sparse.
        itemsize: bytes of an element of the exact tokens.
    """
    plan = plan_pages(mode_LBK, lengths_B, config, spec)
    outliers = config.outliers + config.outlier_store
    exact = (outliers + ring_slots(len(lengths_B), config)) * 2 * head_dim * itemsize
    table = 4 * plan.table.shape[-1]
    positions_scores_frozen_mode = 4 * outliers + 4 * config.outliers + 2
    each_head = exact + table + positions_scores_frozen_mode
    return plan.pages * page_bytes(head_dim, config) + mode_LBK.size * each_head + 8 * len(lengths_B)


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

    def most(high: int, fits: Callable[[int], bool]) -> int:
        low = 0
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if fits(middle) else (low, middle)
        return low

    ways = []
    for bits in sorted((b for b in BITS if b < cache.bits), reverse=True):
        smaller = bytes_of(replace(cache, bits=bits), rows, tokens)
        if smaller <= limit:
            ways.append(f"cache bits {bits} ({_mib(smaller)})")
            break
    fewer_rows = most(rows, lambda n: bytes_of(cache, n, tokens) <= limit)
    fewer_tokens = most(tokens, lambda n: bytes_of(cache, rows, n) <= limit)
    if fewer_rows:
        ways.append(f"{fewer_rows} row(s) of that length")
    if fewer_tokens:
        ways.append(f"prompt and new tokens up to {fewer_tokens} in every row")
    if not fewer_rows and not fewer_tokens:
        alone = most(tokens, lambda n: bytes_of(cache, 1, n) <= limit)
        ways += [f"one row of up to {alone} tokens"] if alone else []
    fit = f"What would fit: {', or '.join(ways)}." if ways else "Not even one row of one token would fit."
    raise ConfigError(
        f"the cache of {rows} row(s) of up to {tokens} tokens needs {need} bytes ({_mib(need)}); the limit is "
        f"{limit_mib} MiB. {fit}"
    )


def _mib(size: int) -> str:
    return f"{size / 2**20:.1f} MiB"
