"""The key blocks of one query block, in visiting order and cut into tiles: scalar code of the kernels."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from pallas_kernels.schedule import AttentionSpec, Schedule
from pallas_kernels.tpu.plan import LaunchSizes, is_sparse, read_plan

UNSEEN = -(2**30)
"""Limit that no offset reaches."""


class Sweep(NamedTuple):
    """Tiles of up to `width` blocks: first the near blocks (schedule or list), then those of the middle."""

    head: jax.Array
    plan: Schedule
    near: jax.Array
    """Blocks of the schedule or of the list."""
    middle: jax.Array | None
    """Blocks that the schedule leaves out, where they are visited as well. Otherwise None, which saves scalar code."""
    listed: jax.Array | None
    """Whether `blocks` replaces the schedule; None when no head has a list."""
    blocks: Any
    """Ref of the list, see `list_blocks`."""
    width: int

    @property
    def near_tiles(self) -> jax.Array:
        return _tiles(self.near, self.width)

    @property
    def tiles(self) -> jax.Array:
        return self.near_tiles if self.middle is None else self.near_tiles + _tiles(self.middle, self.width)

    def left(self, tile: jax.Array) -> jax.Array:
        """Blocks of a tile, 1 to `width`."""
        near = self.near - tile * self.width
        if self.middle is None:
            return jnp.minimum(near, self.width)
        middle = self.middle - (tile - self.near_tiles) * self.width
        return jnp.minimum(jnp.where(tile < self.near_tiles, near, middle), self.width)

    def slots(self, tile: jax.Array) -> jax.Array:
        """Width that the tile is computed at: its blocks rounded up to a power of two."""
        left, slots = self.left(tile), jnp.int32(1)
        for width in widths(self.width)[:-1]:
            slots = jnp.where(left > width, 2 * width, slots)
        return slots

    def step(self, tile: jax.Array, slot: jax.Array) -> jax.Array:
        """Index in the visiting order; slots beyond the last block repeat it."""
        return tile * self.width + jnp.minimum(slot, self.left(tile) - 1)

    def block(self, tile: jax.Array, slot: jax.Array) -> jax.Array:
        """Key block in a slot of a tile."""
        step = self.step(tile, slot)
        block = self.plan.block(step)
        if self.listed is not None:
            length = (self.blocks.shape[1] - 1) // 2
            block = jnp.where(self.listed, self.blocks[0, 1 + jnp.minimum(step, length - 1)], block)
        if self.middle is None:
            return block
        in_middle = self.plan.middle[0] + step - self.near_tiles * self.width
        return jnp.where(tile < self.near_tiles, block, in_middle)

    def unmasked(self, tile: jax.Array, spec: AttentionSpec) -> jax.Array:
        """Whether every row sees every key of the tile; the diagonal is the last near block."""
        if spec.window is not None:
            return jnp.bool_(False)
        plain = (tile + 1) * self.width < self.near
        if self.middle is not None:
            plain |= (tile >= self.near_tiles) & (self.left(tile) == self.width)
        return plain if self.listed is None else plain & ~self.listed

    def limits(self, tile: jax.Array, slot: int, spec: AttentionSpec, groups: int) -> list[jax.Array]:
        """For each query head the largest key - query offset (both inside their block) that it sees in a slot."""
        step = tile * self.width + slot
        limit = (self.plan.diag - self.block(tile, jnp.int32(slot))) * spec.block_size
        limit = jnp.where(slot < self.left(tile), limit, UNSEEN)
        if self.listed is None:
            return [limit] * groups
        length = (self.blocks.shape[1] - 1) // 2
        bits = self.blocks[0, 1 + length + jnp.minimum(step, length - 1)]
        bits = jnp.where(self.listed, bits, -1)
        return [jnp.where((bits >> g) & 1 == 1, limit, UNSEEN) for g in range(groups)]


def _tiles(blocks: jax.Array, width: int) -> jax.Array:
    """Tiles that hold some blocks; a shift, because dividing is slow in scalar code."""
    return (blocks + width - 1) >> (width.bit_length() - 1)


def widths(width: int) -> list[int]:
    """The widths that tiles are computed at, ascending; `width` is a power of two."""
    return [2**n for n in range(width.bit_length())]


def make_sweep(
    tables: Any,
    blocks: Any,
    head: jax.Array,
    query_block: jax.Array,
    *,
    with_middle: bool,
    width: int,
    sizes: LaunchSizes,
    spec: AttentionSpec,
) -> Sweep:
    """Sweep of a query block.

    Args:
        tables: refs of the prefetched `Tables`.
        blocks: ref of the list of the query block, or None.
        with_middle: go over the schedule of a sparse head, even for a full one, and then over the rest.
    """
    sparse = jnp.bool_(True) if with_middle else is_sparse(tables, head, query_block, sizes)
    plan = read_plan(tables, sparse, head, query_block, sizes, spec)
    near = plan.steps
    middle = jnp.maximum(plan.middle[1] - plan.middle[0], 0) if with_middle else None
    listed = None
    if blocks is not None:
        listed = blocks[0, 0] >= 0
        near = jnp.where(listed, blocks[0, 0], near)
    return Sweep(head, plan, near, middle, listed, blocks, width)


def tile_mask(
    sweep: Sweep, tile: jax.Array, slots: int, heads: range, spec: AttentionSpec, groups: int, *, keys_axis: int
) -> jax.Array:
    """Mask of a tile for the rows of some query heads.

    Returns:
        bool `[len(heads) * block, slots * block]`; transposed for `keys_axis` 0.
    """
    shape = (spec.block_size, spec.block_size)
    offset = lax.broadcasted_iota(jnp.int32, shape, keys_axis) - lax.broadcasted_iota(jnp.int32, shape, 1 - keys_axis)
    limits = [sweep.limits(tile, slot, spec, groups) for slot in range(slots)]

    def visible(limit: jax.Array) -> jax.Array:
        mask = offset <= limit
        return mask if spec.window is None else mask & (offset > limit - spec.window)

    by_head = [jnp.concatenate([visible(limit[g]) for limit in limits], keys_axis) for g in heads]
    return jnp.concatenate(by_head, 1 - keys_axis)
