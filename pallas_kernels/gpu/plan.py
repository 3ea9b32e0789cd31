"""What the GPU kernels read about a call: runs of key blocks, ends of sequences, and the order of work.

A boolean mask becomes lists of the blocks that it keeps, which a kernel visits one after the other.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import triton
import triton.language as tl

from pallas_kernels.blocks import by_block
from pallas_kernels.call import AttentionCall
from pallas_kernels.gpu.launch import launch
from pallas_kernels.schedule import block_schedule, visitors_stop


class BlockLists(NamedTuple):
    """Indices of the kept blocks in ascending order, and how many there are; what follows them is undefined."""

    blocks: jax.Array
    """int16 `[..., blocks]`."""
    count: jax.Array
    """int32 `[...]`."""


@triton.jit
def compact_kernel(keep_ptr, width, blocks_ptr, count_ptr, CHUNK: tl.constexpr):
    """One program compacts one row of the mask."""
    row = tl.program_id(0).to(tl.int64)
    count = 0
    for start in range(0, width, CHUNK):
        index = start + tl.arange(0, CHUNK)
        keep = tl.load(keep_ptr + row * width + index, mask=index < width, other=0).to(tl.int32)
        place = count + tl.cumsum(keep, 0) - keep
        tl.store(blocks_ptr + row * width + place, index.to(tl.int16), mask=keep != 0)
        count += tl.sum(keep, 0)  # pyrefly: ignore[unsupported-operation]
    tl.store(count_ptr + row, count)


def compact(keep: jax.Array) -> BlockLists:
    """Lists of the true entries along the last axis of a boolean array (at most 32767 long)."""
    *rows, width = keep.shape
    if width > jnp.iinfo(jnp.int16).max:
        raise ValueError(f"{width} key blocks; block lists hold indices up to {jnp.iinfo(jnp.int16).max}.")
    lists = launch(
        compact_kernel,
        keep.size // width,
        {"keep_ptr": keep.astype(jnp.int8), "width": width},
        {
            "blocks_ptr": jax.ShapeDtypeStruct(keep.shape, jnp.int16),
            "count_ptr": jax.ShapeDtypeStruct(tuple(rows), jnp.int32),
        },
        warps=4,
        stages=1,
        constants={"CHUNK": 256},
    )
    return BlockLists(lists["blocks_ptr"], lists["count_ptr"])


class BlockPlan(NamedTuple):
    """Integer arrays; J key blocks and Q query blocks (the last Q of the J) in a row."""

    runs_BKQ3: jax.Array
    """`first`, `n_sink` and `lo` of the schedule."""
    stop_BKJ: jax.Array
    """Query blocks up to here visit the key block."""
    limit_BJ: jax.Array
    """Token where the sequence of the block ends; 0 for a block of padding."""
    keep_BNQJ: jax.Array | None
    """Blocks to visit where a list replaces the runs."""


def make_plan(call: AttentionCall, sparse: jax.Array) -> BlockPlan:
    """Plan of a call; `sparse` (`[B, K]` or `[B, M, K]`) says which KV heads are sparse."""
    geometry, spec, rows = call.geometry, call.spec, call.rows()
    J, fixed = geometry.key_blocks, geometry.first_query_block
    blocks = jnp.arange(J)
    sparse_BKJ = by_block(sparse, rows)
    streaming_BKJ = sparse_BKJ if call.block_mask is None else jnp.zeros_like(sparse_BKJ)
    start_BKJ = jnp.broadcast_to(rows.start_BJ[:, None], sparse_BKJ.shape)
    diag_BKQ = jnp.broadcast_to(blocks[fixed:], streaming_BKJ[:, :, fixed:].shape)
    schedule = block_schedule(streaming_BKJ[:, :, fixed:], start_BKJ[:, :, fixed:], diag_BKQ, spec)
    runs_BKQ3 = jnp.stack([schedule.first, schedule.n_sink, schedule.lo], -1).astype(jnp.int32)

    changes_BJ = jnp.pad(rows.segment_BJ[:, 1:] != rows.segment_BJ[:, :-1], ((0, 0), (0, 1)), constant_values=True)
    end_BJ = jax.lax.cummin(jnp.where(changes_BJ, blocks + 1, J), axis=1, reverse=True)
    end_BJ = jnp.where(rows.segment_BJ < 0, 0, end_BJ)
    stop_BKJ = visitors_stop(streaming_BKJ, start_BKJ, end_BJ[:, None], blocks[None, None], spec)

    limit_BJ = jnp.full((sparse.shape[0], J), geometry.keys)
    if rows.valid_BS is not None:
        tokens_BJ = jnp.pad(rows.valid_BS, ((0, 0), (0, geometry.right))).reshape(-1, J, geometry.block).sum(-1)
        last_BJ = jnp.maximum(end_BJ - 1, 0)
        limit_BJ = last_BJ * geometry.block + jnp.take_along_axis(tokens_BJ, last_BJ, axis=1)
        limit_BJ = jnp.where(rows.segment_BJ < 0, 0, limit_BJ)

    keep_BNQJ = None
    if call.has_masks:
        keep_BNQJ = _kept_blocks(call, sparse_BKJ[:, :, fixed:], runs_BKQ3)
    return BlockPlan(runs_BKQ3, stop_BKJ.astype(jnp.int32), limit_BJ.astype(jnp.int32), keep_BNQJ)


def _kept_blocks(call: AttentionCall, sparse_BKQ: jax.Array, runs_BKQ3: jax.Array) -> jax.Array:
    """The mask of each head, inside the runs that its plan allows, `[B, N, Q, J]`."""
    blocks = jnp.arange(call.geometry.key_blocks)[None, None, None]
    first, n_sink, lo = (runs_BKQ3[..., i, None] for i in range(3))
    diag = jnp.swapaxes(blocks[..., call.geometry.first_query_block :], 2, 3)
    inside = (blocks <= diag) & (((blocks >= first) & (blocks < first + n_sink)) | (blocks >= lo))
    keep = jnp.repeat(inside, call.groups, axis=1)
    is_sparse = jnp.repeat(sparse_BKQ, call.groups, axis=1)[..., None]
    if call.block_mask is not None:
        keep &= call.block_mask | ~is_sparse
    if call.full_block_mask is not None:
        keep &= call.full_block_mask | is_sparse
    return keep


class Work(NamedTuple):
    """What one kernel goes through: its items in the order in which they start, and the lists of their blocks."""

    order: jax.Array
    lists: BlockLists | None


def heaviest_first(steps: jax.Array) -> jax.Array:
    """Flat indices of `steps`, the largest first (longest processing time first): full heads start with their last
    queries, streaming heads fill in, and the programs that start last are short, so that no multiprocessor works on
    alone at the end. Ties stay in order, so that heads that share keys run side by side."""
    return jnp.argsort(-steps.reshape(-1), stable=True).astype(jnp.int32)


def query_work(plan: BlockPlan, heads: int) -> Work:
    """Items (row, query block, query head), for kernels that own query tiles."""
    B, K, Q, _ = plan.runs_BKQ3.shape
    if plan.keep_BNQJ is not None:
        lists = compact(plan.keep_BNQJ)
        return Work(heaviest_first(jnp.swapaxes(lists.count, 1, 2)), lists)
    diag = jnp.arange(plan.limit_BJ.shape[1])[-Q:]
    steps_BKQ = plan.runs_BKQ3[..., 1] + diag[None, None] + 1 - plan.runs_BKQ3[..., 2]
    return Work(heaviest_first(jnp.repeat(jnp.swapaxes(steps_BKQ, 1, 2), heads // K, axis=2)), None)


def key_work(plan: BlockPlan) -> Work:
    """Items (row, key block, KV head), for the kernel that owns key tiles."""
    B, K, J = plan.stop_BKJ.shape
    Q = plan.runs_BKQ3.shape[2]
    if plan.keep_BNQJ is not None:
        lists = compact(jnp.swapaxes(plan.keep_BNQJ, 2, 3))
        steps_BKJ = lists.count.reshape(B, K, -1, J).sum(2)
        return Work(heaviest_first(jnp.swapaxes(steps_BKJ, 1, 2)), lists)
    steps_BKJ = plan.stop_BKJ - jnp.maximum(jnp.arange(J), J - Q)[None, None]
    return Work(heaviest_first(jnp.swapaxes(steps_BKJ, 1, 2)), None)
