"""What the shards of a row send each other, inside `shard_map`: all keys, halos, sinks, and queries that change places.

Shard s of C holds tokens `[s T / C, (s + 1) T / C)`. Everything is differentiated by its transpose: a gather by a sum
that scatters, a step to the right by one to the left.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from pallas_kernels.schedule import segment_starts


def to_balanced(x: jax.Array, axis: str) -> tuple[jax.Array, jax.Array]:
    """Chunks s and 2C - 1 - s of the 2C chunks of `x` `[B, T / C, ...]`: an early one and a late one for each shard.

    Causal work grows with the position, so the two together are the same work on every shard. Each shard sends its even
    chunk to one shard and its odd chunk to one.
    """
    even, odd = (lax.ppermute(part, axis, way) for part, way in zip(jnp.split(x, 2, axis=1), _ways(axis), strict=True))
    return _in_order(even, odd, axis)


def from_balanced(early: jax.Array, late: jax.Array, axis: str) -> jax.Array:
    """Inverse of `to_balanced`."""
    even, odd = _in_order(early, late, axis)
    back = ([(to, start) for start, to in way] for way in _ways(axis))
    return jnp.concatenate([lax.ppermute(part, axis, way) for part, way in zip((even, odd), back, strict=True)], axis=1)


def _ways(axis: str) -> list[list[tuple[int, int]]]:
    """Where every shard's first (even) and second (odd) chunk goes."""
    shards = lax.axis_size(axis)
    return [[(s, min(chunk, 2 * shards - 1 - chunk)) for s in range(shards) for chunk in [2 * s + i]] for i in (0, 1)]


def _in_order(a: jax.Array, b: jax.Array, axis: str) -> tuple[jax.Array, jax.Array]:
    """(a, b) on even shards and (b, a) on odd ones, where the early chunk is odd."""
    even = lax.axis_index(axis) % 2 == 0
    return jnp.where(even, a, b), jnp.where(even, b, a)


def keys_up_to(x: jax.Array, chunk: jax.Array, chunks: int, size: int) -> jax.Array:
    """The first `chunks` chunks of `size` tokens of `x` `[B, T, ...]`, rolled so that chunk `chunk` is the last.

    Later chunks wrap to the front and must be marked as padding.
    """
    return jnp.roll(x[:, : chunks * size], -(chunk + 1) * size, axis=1)


def ids_up_to(ids_BT: jax.Array, chunk: jax.Array, chunks: int, size: int) -> jax.Array:
    """Segment ids of `keys_up_to`, 0 for the chunks that wrapped."""
    known = jnp.arange(chunks * size) < (chunk + 1) * size
    return keys_up_to(jnp.where(known, ids_BT[:, : chunks * size], 0), chunk, chunks, size)


def preceding(x: jax.Array, tokens: int, axis: str) -> jax.Array:
    """The `tokens` tokens before the shard's own, zeros before the row; from as many shards as hold them."""
    shards, own = lax.axis_size(axis), x.shape[1]
    parts = []
    for hop in range(1, -(-tokens // own) + 1):
        part = x if hop * own <= tokens else x[:, hop * own - tokens :]
        parts.append(lax.ppermute(part, axis, [(s, s + hop) for s in range(shards - hop)]))
    return jnp.concatenate(parts[::-1], axis=1)


def border_sinks(x: jax.Array, ids_BT: jax.Array, sinks: int, before: int, block: int, axis: str) -> tuple[Any, Any]:
    """First blocks of the segment that runs across the shard's left border, `[B, sinks * block, ...]`, and their ids.

    Blocks that the halo of `before` blocks holds anyway are left out; what there is ends where the halo begins, id 0
    fills the front. Every shard adds what it has of every other's sinks to one sum, of which each gets its own part:
    at most one addend is not zero, so nothing is rounded.
    """
    shards, shard, own = lax.axis_size(axis), lax.axis_index(axis), x.shape[1] // block
    B = ids_BT.shape[0]
    ids_BJs = ids_BT.reshape(B, -1, block)
    start_BJ = segment_starts(ids_BJs.max(-1))
    first_C = jnp.arange(shards) * own
    start_BC = start_BJ[:, first_C]
    missing_BC = jnp.clip(first_C[None] - before - start_BC, 0, sinks)
    slot_BCs = jnp.arange(sinks)[None, None] - (sinks - missing_BC[..., None])
    wanted_BCs = jnp.where(slot_BCs >= 0, start_BC[..., None] + slot_BCs, -1)

    here_BCs = wanted_BCs - shard * own
    have = (here_BCs >= 0) & (here_BCs < own) & (wanted_BCs >= 0)
    blocks = x.reshape(B, own, block, *x.shape[2:])
    picked = jax.vmap(lambda row, index: row[index])(blocks, jnp.clip(here_BCs, 0, own - 1))
    picked = jnp.where(have.reshape(*have.shape, *(1,) * (picked.ndim - 3)), picked, 0)
    mine = lax.psum_scatter(picked.swapaxes(0, 1), axis, scatter_dimension=0)

    wanted_Bs = wanted_BCs[:, shard]
    ids = jnp.take_along_axis(ids_BJs, jnp.maximum(wanted_Bs, 0)[..., None], axis=1)
    ids = jnp.where(wanted_Bs[..., None] >= 0, ids, 0)
    return mine.reshape(B, sinks * block, *x.shape[2:]), ids.reshape(B, -1)
