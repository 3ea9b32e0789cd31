"""From tokens to packed groups, and the plan of which page holds which group of which head."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from elastic_jax.config import HeadMode
from elastic_jax.kv_cache.config import CacheConfig
from elastic_jax.kv_cache.outliers import ordered_sum
from pallas_kernels import Pages, pack, quantize_group
from pallas_kernels.schedule import AttentionSpec

METADATA = jnp.float16
"""Type of scales, zeros and norms: 32 bits for a pair, 0.25 bits an element in groups of 128."""


class PagePlan(NamedTuple):
    """Page of every group of every head: `table` int32 `[L, B, K, J]` into a pool of `pages`."""

    table: np.ndarray
    pages: int


def quantized_tokens[A: (jax.Array, np.ndarray)](lengths: A, config: CacheConfig) -> A:
    """How many of the first tokens of a row are flushed: all whole groups but the residual."""
    return (lengths - config.residual).clip(0) // config.group * config.group


def plan_pages(mode_LBK: np.ndarray, lengths_B: np.ndarray, config: CacheConfig, spec: AttentionSpec) -> PagePlan:
    """Gives every head the pages that it needs for a row of `lengths_B` tokens.

    A full head has a page for each group. A sparse head has one for each group of the sinks and a ring for the rest,
    just long enough that a group is overwritten when no later query may see it. Pool and table are rounded up.
    """
    sparse_LBK = np.asarray(mode_LBK) == HeadMode.SPARSE
    groups_B = quantized_tokens(lengths_B, config) // config.group
    J = round_up(int(groups_B.max()), parts=8)
    sinks, ring = sparse_groups(config, spec)
    group = np.arange(J)
    in_ring = np.where(group < sinks, group, sinks + (group - sinks) % ring)
    offset_LBKJ = np.where(sparse_LBK[..., None], in_ring, group)
    needed_LBK = np.where(sparse_LBK, np.minimum(groups_B, sinks + ring)[:, None], groups_B[:, None])
    first_LBK = (np.cumsum(needed_LBK) - needed_LBK.ravel()).reshape(needed_LBK.shape)
    held = group < groups_B[:, None, None]
    table = np.where(held, first_LBK[..., None] + offset_LBKJ, 0).astype(np.int32)
    return PagePlan(table, round_up(int(needed_LBK.sum()), parts=32))


def sparse_groups(config: CacheConfig, spec: AttentionSpec) -> tuple[int, int]:
    """What a sparse head stores: how many first groups, for its sinks, and how many of the newest after those."""
    sinks = -(-spec.sink_blocks * spec.block_size // config.group)
    return sinks, max(-(-(spec.local_blocks * spec.block_size - 1) // config.group), 1)


def round_up(count: int, *, parts: int) -> int:
    """At least `count` and 1, by less than a `parts`-th: few different sizes, so few compiled programs."""
    step = 1 << max(count.bit_length() - parts.bit_length(), 0)
    return max(-(-count // step) * step, 1)


def empty_pages(pages: int, head_dim: int, config: CacheConfig) -> Pages:
    """A pool of blank pages."""
    tokens = jnp.zeros((1, config.group, head_dim))
    one = jax.eval_shape(lambda: quantize_tokens(tokens, tokens, jnp.zeros((1, config.group), bool), config))
    return jax.tree.map(lambda x: jnp.zeros((pages, *x.shape[1:]), x.dtype), one)


def page_bytes(head_dim: int, config: CacheConfig) -> int:
    """Bytes of one page: codes, scales and zeros of keys and values, holes, and token norms where kept."""
    return tree_bytes(jax.eval_shape(lambda: empty_pages(1, head_dim, config)))


def tree_bytes(tree: Any) -> int:
    """Bytes of all arrays of a tree, or of what its shapes would hold."""
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))


def quantize_tokens(k: jax.Array, v: jax.Array, holes: jax.Array, config: CacheConfig) -> Pages:
    """Packs keys and values of groups `[..., G, H]`, tokens in `holes` `[..., G]` left out of the keys' range."""
    k, v = k.astype(jnp.float32), v.astype(jnp.float32)
    norm = None
    if config.normalizes:
        norm = jnp.sqrt(ordered_sum(k * k)).astype(METADATA)
        k = k / jnp.maximum(norm.astype(jnp.float32), float(jnp.finfo(METADATA).tiny))[..., None]
    k_codes, k_scale, k_zero = quantize_group(
        k, axis=-2, bits=config.bits, valid=~holes[..., None], metadata_dtype=METADATA
    )
    channels = min(config.group, v.shape[-1])
    v_codes, v_scale, v_zero = quantize_group(
        v.reshape(*v.shape[:-1], -1, channels), axis=-1, bits=config.bits, metadata_dtype=METADATA
    )
    return Pages(
        pack(k_codes, bits=config.bits),
        k_scale,
        k_zero,
        norm,
        pack(v_codes.reshape(v.shape), bits=config.bits),
        v_scale,
        v_zero,
        pack(holes[..., None].astype(jnp.uint8), bits=1),
    )
