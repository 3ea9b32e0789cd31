"""What a TPU kernel reads before any key: prefetched scalars, listed blocks, and the schedule that follows from them.

Modes and segment starts go to scalar memory as they are, and the shared schedule is evaluated there, once for each
query block; so the tables have O(batch * blocks) entries for any number of heads. Block masks become lists of key
blocks (compacted, with a count), which live in HBM and follow the query blocks one by one.

Letters: P = B * K heads of the batch, Q query blocks (padded to an even number), R = G * block rows of a query block.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from pallas_kernels.blocks import Geometry, RowLayout, by_block
from pallas_kernels.schedule import AttentionSpec, Schedule, block_schedule

SCALAR_MEMORY = 900 * 1024
"""Bytes of scalar memory that the tables may take; chips have 1 MiB."""
MAX_LISTED_GROUPS = 31
"""Query heads of a KV head whose block masks fit the bits of one listed block."""


class Tables(NamedTuple):
    """Flat int32 arrays for scalar prefetch."""

    sparse: jax.Array
    """`[B * M * K]`: 1 where the head is sparse in segment m."""
    start: jax.Array
    """`[B * (J + 1)]`: first block of the segment of a block; block J is padding."""
    segment: jax.Array
    """`[B * (J + 1)]`: index of that segment."""


@dataclass(frozen=True)
class LaunchSizes:
    """Static sizes of a launch."""

    batch: int
    kv_heads: int
    segments: int
    groups: int
    head_dim: int
    geometry: Geometry

    @property
    def heads(self) -> int:
        return self.batch * self.kv_heads

    @property
    def rows(self) -> int:
        return self.groups * self.geometry.block

    @property
    def query_blocks(self) -> int:
        """An even number: each of two cores takes every second one."""
        return self.geometry.query_blocks + self.geometry.query_blocks % 2


def make_tables(sparse: jax.Array, rows: RowLayout, sizes: LaunchSizes) -> Tables:
    """Tables of `sparse`, bool `[B, K]` or `[B, M, K]`.

    Raises:
        ValueError: they do not fit scalar memory.
    """
    J = sizes.geometry.key_blocks
    start_BJ = jnp.pad(rows.start_BJ, ((0, 0), (0, 1)), constant_values=J + 1)
    segment_BJ = jnp.pad(jnp.clip(rows.segment_BJ, 0, sizes.segments - 1), ((0, 0), (0, 1)))
    tables = Tables(*(x.reshape(-1).astype(jnp.int32) for x in (sparse, start_BJ, segment_BJ)))
    need = sum(4 * x.size for x in tables)
    if need > SCALAR_MEMORY:
        raise ValueError(
            f"The block tables of {sizes.batch} rows of {J} key blocks need {need} bytes of the TPU's scalar memory; "
            f"wanted at most {SCALAR_MEMORY}. Split the batch."
        )
    # A backward pass keeps the tables. As results of a conversion, kept by both branches of a conditional, they crash
    # libtpu 0.0.48 (conditional code motion).
    return lax.optimization_barrier(tables)


def is_sparse(tables: Any, head: jax.Array, block: jax.Array, sizes: LaunchSizes) -> jax.Array:
    """Mode of query block `block` of head `head` (of P), from refs of the tables."""
    row, kv_head = lax.div(head, sizes.kv_heads), lax.rem(head, sizes.kv_heads)
    segment = tables.segment[_key_block(head, block, sizes)] if sizes.segments > 1 else 0
    return tables.sparse[(row * sizes.segments + segment) * sizes.kv_heads + kv_head] != 0


def segment_start(tables: Any, head: jax.Array, block: jax.Array, sizes: LaunchSizes) -> jax.Array:
    """First key block of the segment of a query block, from refs of the tables."""
    return tables.start[_key_block(head, block, sizes)]


def _key_block(head: jax.Array, block: jax.Array, sizes: LaunchSizes) -> jax.Array:
    """Where the tables hold the key block with the positions of a query block."""
    row = lax.div(head, sizes.kv_heads)
    return row * (sizes.geometry.key_blocks + 1) + sizes.geometry.first_query_block + block


def read_plan(
    tables: Any, sparse: jax.Array, head: jax.Array, block: jax.Array, sizes: LaunchSizes, spec: AttentionSpec
) -> Schedule:
    """Schedule of a query block, from refs of the tables."""
    start = segment_start(tables, head, block, sizes)
    return block_schedule(sparse, start, sizes.geometry.first_query_block + block, spec)


def head_work(tables: Tables, lists: jax.Array | None, sizes: LaunchSizes, spec: AttentionSpec) -> jax.Array:
    """Key blocks that each head visits, `[P]`."""
    head, block = jnp.arange(sizes.heads)[:, None], jnp.arange(sizes.query_blocks)[None]
    steps_PQ = read_plan(tables, is_sparse(tables, head, block, sizes), head, block, sizes, spec).steps
    if lists is not None:
        steps_PQ = jnp.where(lists[:, :, 0, 0] >= 0, lists[:, :, 0, 0], steps_PQ)
    return jnp.sum(steps_PQ, axis=1)


def list_blocks(
    sparse: jax.Array,
    rows: RowLayout,
    sizes: LaunchSizes,
    spec: AttentionSpec,
    sparse_mask: jax.Array | None,
    full_mask: jax.Array | None,
) -> jax.Array | None:
    """Lists of the key blocks that block masks leave, int32 `[P, Q, 1, 1 + 2 J]`; None without masks.

    A list holds its count (-1 where the head follows the schedule), the blocks in ascending order, and for each block
    the bits of the query heads that see it: a block is visited once for all the query heads of a KV head.

    Args:
        sparse_mask: bool `[B, N, T blocks, J]` for sparse heads; None if they follow the schedule.
        full_mask: the same for full heads.

    Raises:
        NotImplementedError: more query heads share a KV head than an int32 has bits.
    """
    if sparse_mask is None and full_mask is None:
        return None
    if sizes.groups > MAX_LISTED_GROUPS:
        raise NotImplementedError(
            f"Block masks on TPU take at most {MAX_LISTED_GROUPS} query heads for each KV head; got {sizes.groups}. "
            "Use impl='xla'."
        )
    geometry, G = sizes.geometry, sizes.groups
    J, first = geometry.key_blocks, geometry.first_query_block
    is_sparse_BKQ = by_block(sparse, rows)[:, :, first:]
    diag_Q = jnp.arange(first, J)
    reach_BQ = block_schedule(jnp.asarray(False), rows.start_BJ[:, first:], diag_Q[None], spec).lo
    block_11J = jnp.arange(J)[None, None]
    exists_BQJ = (block_11J >= reach_BQ[:, :, None]) & (block_11J <= diag_Q[None, :, None])

    def bits(mask_BNQJ: jax.Array | None) -> jax.Array:
        if mask_BNQJ is None:
            return jnp.zeros((), jnp.int32)
        mask = mask_BNQJ.reshape(sizes.batch, sizes.kv_heads, G, *mask_BNQJ.shape[2:])
        weight_G = jnp.left_shift(1, jnp.arange(G))[:, None, None]
        return jnp.sum(jnp.where(mask & exists_BQJ[:, None, None], weight_G, 0), 2)

    bits_BKQJ = jnp.where(is_sparse_BKQ[..., None], bits(sparse_mask), bits(full_mask))
    listed_BKQ = jnp.where(is_sparse_BKQ, sparse_mask is not None, full_mask is not None)
    order_BKQJ = jnp.argsort(bits_BKQJ == 0, axis=-1, stable=True)
    count_BKQ = jnp.where(listed_BKQ, jnp.sum(bits_BKQJ != 0, -1), -1)
    lists = jnp.concatenate(
        [count_BKQ[..., None], order_BKQJ, jnp.take_along_axis(bits_BKQJ, order_BKQJ, axis=-1)], axis=-1
    ).astype(jnp.int32)
    lists = lists.reshape(sizes.heads, geometry.query_blocks, 1, -1)
    return jnp.pad(lists, ((0, 0), (0, sizes.query_blocks - geometry.query_blocks), (0, 0), (0, 0)))
