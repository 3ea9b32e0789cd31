"""From public arrays to whole blocks and back: padding, packed rows, and query heads folded into rows.

Query heads that share a KV head become rows of one matrix, `[B, K, query blocks, G * block, H]`, so that keys and
values are never repeated and the matmuls are large. Queries are the last T of S positions; they are padded on the
left until their blocks coincide with key blocks.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from pallas_kernels.schedule import segment_starts


class RowLayout(NamedTuple):
    """Where the sequences of a batch lie, by key block (J blocks a row) and by token."""

    start_BJ: jax.Array
    """First block of the segment that a block belongs to; for a block of padding the next block, so that a schedule
    started there is empty."""
    segment_BJ: jax.Array
    """Index of that segment, -1 for a block of padding."""
    valid_BS: jax.Array | None
    """Tokens that exist; None when all do."""


class Geometry(NamedTuple):
    """Static sizes that relate query blocks to key blocks."""

    block: int
    queries: int
    keys: int
    spare: int = 0
    """Blocks of padding after the last key."""

    @property
    def key_blocks(self) -> int:
        return -(-self.keys // self.block) + self.spare

    @property
    def first_query_block(self) -> int:
        """Key block that holds the first query."""
        return (self.keys - self.queries) // self.block

    @property
    def query_blocks(self) -> int:
        return self.key_blocks - self.first_query_block

    @property
    def left(self) -> int:
        """Padding rows before the first query."""
        return (self.keys - self.queries) % self.block

    @property
    def right(self) -> int:
        """Padding rows after the last query and the last key."""
        return self.key_blocks * self.block - self.keys


def describe_rows(
    batch: int, geometry: Geometry, lengths_B: jax.Array | None, segment_ids_BS: jax.Array | None
) -> RowLayout:
    """Finds the segment of every block. Without `segment_ids_BS` a row is one segment."""
    bs, J = geometry.block, geometry.key_blocks
    ids_BS = jnp.ones((batch, geometry.keys), jnp.int32) if segment_ids_BS is None else segment_ids_BS
    if lengths_B is not None:
        ids_BS = jnp.where(jnp.arange(geometry.keys)[None] < lengths_B[:, None], ids_BS, 0)
    ids_BJ = jnp.pad(ids_BS, ((0, 0), (0, geometry.right))).reshape(batch, J, bs).max(-1)
    everything = lengths_B is None and segment_ids_BS is None
    return RowLayout(segment_starts(ids_BJ), ids_BJ - 1, None if everything else ids_BS > 0)


def by_block(choice: jax.Array, rows: RowLayout) -> jax.Array:
    """Spreads a value per head, `[B, K]` or `[B, M, K]`, over the key blocks of its segment: `[B, K, J]`."""
    if choice.ndim == 2:
        return jnp.broadcast_to(choice[:, :, None], (*choice.shape, rows.start_BJ.shape[1]))
    index_BJ = jnp.clip(rows.segment_BJ, 0, choice.shape[1] - 1)
    return jnp.swapaxes(jnp.take_along_axis(choice, index_BJ[:, :, None], axis=1), 1, 2)


def by_query_block(choice: jax.Array, rows: RowLayout, geometry: Geometry) -> jax.Array:
    """`by_block` at the query blocks: `[B, K, Q]`."""
    return by_block(choice, rows)[:, :, geometry.first_query_block :]


def fold_queries(x_BTNH: jax.Array, kv_heads: int, geometry: Geometry) -> jax.Array:
    """`[B, T, N, H]` -> `[B, K, query blocks, G * block, H]`."""
    B, _, N, H = x_BTNH.shape
    x = jnp.pad(x_BTNH, ((0, 0), (geometry.left, geometry.right), (0, 0), (0, 0)))
    x = x.reshape(B, geometry.query_blocks, geometry.block, kv_heads, N // kv_heads, H)
    return x.transpose(0, 3, 1, 4, 2, 5).reshape(B, kv_heads, geometry.query_blocks, -1, H)


def unfold_queries(x_BKQRH: jax.Array, geometry: Geometry) -> jax.Array:
    """Inverse of `fold_queries`."""
    B, K, Q, R, H = x_BKQRH.shape
    x = x_BKQRH.reshape(B, K, Q, R // geometry.block, geometry.block, H).transpose(0, 2, 4, 1, 3, 5)
    x = x.reshape(B, Q * geometry.block, -1, H)
    return x[:, geometry.left : geometry.left + geometry.queries]


def fold_keys(x_BSKH: jax.Array, geometry: Geometry) -> jax.Array:
    """`[B, S, K, H]` -> `[B, K, whole blocks, H]`."""
    return jnp.pad(x_BSKH, ((0, 0), (0, geometry.right), (0, 0), (0, 0))).transpose(0, 2, 1, 3)


def clear_padding(x: jax.Array, valid_BS: jax.Array | None, value: float = 0.0) -> jax.Array:
    """Overwrites the tokens of `x` (`[B, S or T, ., .]`, the last positions) that do not exist, NaN included."""
    if valid_BS is None:
        return x
    return jnp.where(valid_BS[:, -x.shape[1] :, None, None], x, jnp.asarray(value, x.dtype))
