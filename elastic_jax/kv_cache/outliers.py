"""Outlier tokens: a token with a very small key stretches the range of its whole group, so it is kept exactly instead.

After "Accurate KV Cache Quantization with Outlier Tokens Tracing" (arXiv 2505.10938). Groups compete one after the
other for the few places of a pool; a token that loses its place has no codes to go back to and moves to a store. When
the store cannot take what a group drives out, tracing freezes for good. Every function works on any leading axes, one
entry for each (layer, row, KV head).
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

EMPTY = -1
"""Position of a slot that holds no token."""


class Outliers(NamedTuple):
    """Exact tokens outside the groups: P slots of the pool in order of position, then A slots of the store."""

    k: jax.Array
    """`[..., P + A, H]`"""
    v: jax.Array
    pos: jax.Array
    """int32 `[..., P + A]`, `EMPTY` where there is no token."""
    score: jax.Array
    """float32 `[..., P]`, infinite where there is no token."""
    frozen: jax.Array
    """bool `[...]`: tracing has stopped."""

    @classmethod
    def empty(cls, outer: tuple[int, ...], pool: int, store: int, head_dim: int, dtype: jnp.dtype) -> Outliers:
        tokens = jnp.zeros((*outer, pool + store, head_dim), dtype)
        return cls(
            tokens,
            tokens,
            jnp.full(tokens.shape[:-1], EMPTY, jnp.int32),
            jnp.full((*outer, pool), jnp.inf),
            jnp.zeros(outer, bool),
        )


def token_scores(k: jax.Array, *, stat: str, scope: str) -> jax.Array:
    """How far each key `[..., K, G, H]` is from being an outlier, float32 `[..., K, G]`: its size, smallest first.

    `stat` "l1" or "l2" is the norm; `scope` "layer" adds the norms of all KV heads, so that they choose the same
    tokens.
    """
    k = k.astype(jnp.float32)
    score = ordered_sum(jnp.abs(k)) if stat == "l1" else jnp.sqrt(ordered_sum(k * k))
    if scope == "layer":
        score = jnp.broadcast_to(ordered_sum(score.swapaxes(-1, -2))[..., None, :], score.shape)
    return score


def forget(outliers: Outliers, alive: jax.Array) -> Outliers:
    """Frees the slots of tokens that no later query of their head may see; `alive` is bool `[..., P + A]`."""
    pool = outliers.score.shape[-1]
    return outliers._replace(
        pos=jnp.where(alive, outliers.pos, EMPTY), score=jnp.where(alive[..., :pool], outliers.score, jnp.inf)
    )


def compete(
    outliers: Outliers, k: jax.Array, v: jax.Array, score: jax.Array, pos: jax.Array, active: jax.Array
) -> tuple[Outliers, jax.Array]:
    """Lets a group of tokens compete for the pool.

    Args:
        outliers: state before the group.
        k: keys of the group `[..., G, H]`, later than all before; v like k.
        score: `[..., G]`, infinite for a token that must not compete.
        pos: int32 `[..., G]`, ascending.
        active: bool `[...]`, whether this entry traces outliers and has this group at all.

    Returns:
        The state after the group, and bool `[..., G]`: tokens that went to the pool and leave a hole in the group.
    """
    pool, slots, size = outliers.score.shape[-1], outliers.pos.shape[-1], score.shape[-1]
    if pool == 0:
        return outliers, jnp.zeros(score.shape, bool)
    # The pool comes first and is in order of position, so an equal score goes to the older token.
    scores = jnp.concatenate([outliers.score, score], -1)
    best = lax.top_k(-scores, pool)[1]
    best = jnp.where(jnp.isfinite(jnp.take_along_axis(scores, best, -1)), best, pool + size)
    winners = jnp.sort(best, -1)
    won = jax.nn.one_hot(winners, pool + size, dtype=bool).any(-2)

    lost = ~won[..., :pool] & (outliers.pos[..., :pool] >= 0)
    losers = jnp.sort(jnp.where(lost, jnp.arange(pool), pool), -1)
    free = outliers.pos[..., pool:] < 0
    fits = lost.sum(-1) <= free.sum(-1)
    change = active & ~outliers.frozen & fits

    rank = jnp.cumsum(free, -1) - 1
    taken = free & (rank < lost.sum(-1, keepdims=True))
    loser = jnp.take_along_axis(losers, jnp.clip(rank, 0, pool - 1), -1)
    # Sources among (pool, store, group); the index one past the end means no token.
    to_pool = jnp.where(winners < pool, winners, winners + slots - pool)
    to_store = jnp.where(taken, loser, jnp.arange(pool, slots))
    source = jnp.where(change[..., None], jnp.concatenate([to_pool, to_store], -1), jnp.arange(slots))
    pool_source = jnp.where(change[..., None], winners, jnp.arange(pool))

    def gather(kept: jax.Array, new: jax.Array) -> jax.Array:
        tokens = jnp.concatenate([kept, new], -2)
        picked = jnp.take_along_axis(tokens, jnp.minimum(source, slots + size - 1)[..., None], -2)
        return jnp.where((pos_after >= 0)[..., None], picked, 0).astype(kept.dtype)

    pos = jnp.broadcast_to(pos, score.shape)
    pos_after = _take(jnp.concatenate([outliers.pos, pos], -1), source, EMPTY)
    after = Outliers(
        gather(outliers.k, k),
        gather(outliers.v, v),
        pos_after,
        _take(scores, pool_source, jnp.inf),
        outliers.frozen | (active & ~fits),
    )
    return after, won[..., pool:] & change[..., None]


def _take(x: jax.Array, index: jax.Array, missing: float | int) -> jax.Array:
    """`x` at `index` along the last axis; `missing` where the index is one past the end."""
    size = x.shape[-1]
    picked = jnp.take_along_axis(x, jnp.minimum(index, size - 1), -1)
    return jnp.where(index < size, picked, jnp.asarray(missing, x.dtype))


def ordered_sum(x: jax.Array) -> jax.Array:
    """Sum over the last axis in one fixed order, so that a token has the same sum in any batch and program."""
    while x.shape[-1] > 1:
        half = x.shape[-1] // 2
        x = jnp.concatenate([x[..., :half] + x[..., half : 2 * half], x[..., 2 * half :]], -1)
    return x[..., 0]
