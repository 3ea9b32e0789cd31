"""Which key blocks a query block visits: the one rule that every backend of every attention op follows.

A query block sees two runs of key blocks, `[first, first + n_sink)` and `[lo, diag]`. A full head has no sink run and
a local run from the first block; a sparse head has both (streaming attention, Elastic Attention section 3, code block
mask `block(k) < sink_blocks or block(k) > block(q) - local_blocks`, blocks counted from the start of the segment).
What a sparse head leaves out, `[first + n_sink, lo)`, is the middle. All indices are absolute key blocks of the row.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp


@dataclass(frozen=True)
class AttentionSpec:
    """Static parameters of an attention call."""

    sink_blocks: int
    local_blocks: int
    """Local blocks including the diagonal one."""
    block_size: int
    window: int | None
    """Token-level sliding window of every head (query - key < window); None for no limit."""
    scale: float


class Schedule(NamedTuple):
    """Key blocks to visit; the fields broadcast against each other, one entry for each query block."""

    first: jax.Array
    n_sink: jax.Array
    lo: jax.Array
    diag: jax.Array

    @property
    def steps(self) -> jax.Array:
        """How many key blocks are visited."""
        return self.n_sink + self.diag + 1 - self.lo

    def block(self, step: jax.Array) -> jax.Array:
        """Key block of a step; the diagonal comes last."""
        return jnp.where(step < self.n_sink, self.first + step, self.lo + step - self.n_sink)

    @property
    def middle(self) -> tuple[jax.Array, jax.Array]:
        """Half-open range of blocks between the two runs."""
        return self.first + self.n_sink, self.lo


def block_schedule(sparse: jax.Array, start: jax.Array, diag: jax.Array, spec: AttentionSpec) -> Schedule:
    """Schedule of query blocks.

    Args:
        sparse: bool, whether the head is sparse there.
        start: first block of the query's segment.
        diag: key block that holds the same positions as the query block.
        spec: sink and local blocks, block size, window.
    """
    reach = start
    if spec.window is not None:
        # Rounds towards zero, not down: the same once clipped, and scalar code of a TPU kernel has no floor division.
        reach = jnp.maximum(start, jax.lax.div(diag * spec.block_size - (spec.window - 1), spec.block_size))
    lo = jnp.where(sparse, jnp.maximum(reach, diag + 1 - spec.local_blocks), reach)
    sink_end = jnp.minimum(start + spec.sink_blocks, lo)
    n_sink = jnp.where(sparse, jnp.maximum(sink_end - reach, 0), 0)
    return Schedule(reach, n_sink, lo, diag)


def visitors_stop(
    sparse: jax.Array, start: jax.Array, end: jax.Array, block: jax.Array, spec: AttentionSpec
) -> jax.Array:
    """The same rule seen from a key block: query blocks `[block, stop)` visit it, none other; returns `stop`.

    Args:
        sparse: bool, whether the head is sparse there.
        start: first block of the segment of the key block.
        end: end block of that segment; at most `block` where the block holds no token.
        block: key block.
        spec: sink and local blocks, block size, window.
    """
    stop = end
    if spec.window is not None:
        stop = jnp.minimum(end, block + 1 - (1 - spec.window) // spec.block_size)
    near = jnp.minimum(stop, block + spec.local_blocks)
    return jnp.where(sparse & (block - start >= spec.sink_blocks), near, stop)


def segment_starts(ids_BJ: jax.Array) -> jax.Array:
    """First block of the segment of each block, `[B, J]`, from the segment id of every block (0: a block of padding).

    A block of padding gets the block after it, so that its schedule is empty.
    """
    block_J = jnp.arange(ids_BJ.shape[1])
    changed_BJ = jnp.pad(ids_BJ[:, 1:] != ids_BJ[:, :-1], ((0, 0), (1, 0)), constant_values=True)
    start_BJ = jax.lax.cummax(jnp.where(changed_BJ, block_J, 0), axis=1)
    return jnp.where(ids_BJ > 0, start_BJ, block_J + 1)


def query_positions(position_B: jax.Array, queries: int) -> jax.Array:
    """Positions `[B, T]` of consecutive queries, the first of them at `position_B`."""
    return position_B[:, None] + jnp.arange(queries)[None]


def visible_tokens(sparse: jax.Array, q_pos: jax.Array, k_pos: jax.Array, spec: AttentionSpec) -> jax.Array:
    """The same rule by tokens of a row that is one segment; the arguments broadcast against each other."""
    k_block, q_block = k_pos // spec.block_size, q_pos // spec.block_size
    streaming = (k_block < spec.sink_blocks) | (k_block > q_block - spec.local_blocks)
    visible = (k_pos <= q_pos) & (streaming | ~sparse)
    return visible if spec.window is None else visible & (q_pos - k_pos < spec.window)
