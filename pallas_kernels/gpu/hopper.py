"""Forward kernel of hybrid attention for Hopper in Pallas Mosaic GPU, after FlashAttention-3 (arXiv 2407.08608).

A program has one block of 128 queries of one head. Its first two warpgroups own 64 rows each and take turns: while one
multiplies, the other has its softmax. The third one loads the key blocks that the plan names, a few blocks ahead.
Named barriers and inline assembly are left out on purpose: the interpreter knows neither.
"""

from __future__ import annotations

import math
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

BLOCK = 128
"""Tokens of a query tile and of a key tile, which is the block of the schedule."""
ROWS = 64
"""Rows of one warpgroup."""
STAGES = 2
MASKED = -1e30


def shared_bytes(head_dim: int, itemsize: int) -> int:
    """Shared memory of one program: queries (later the output), the stages of keys and values, log-sum-exp."""
    return (1 + 2 * STAGES) * BLOCK * head_dim * itemsize + BLOCK * 4


def hopper_attention(
    q_BTNH: jax.Array, k_BSKH: jax.Array, v_BSKH: jax.Array, runs_BKQ3: jax.Array, order: jax.Array, scale: float
) -> tuple[jax.Array, jax.Array]:
    """Attention of every query block to the two runs of its plan; T and S are whole blocks, T the last ones.

    Args:
        q_BTNH, k_BSKH, v_BSKH: bfloat16 or float16, H a multiple of 64; nothing but numbers in padding.
        runs_BKQ3: `first`, `n_sink` and `lo` of each query block.
        order: int32, all items (row, query block, query head) in the order in which they start.
        scale: factor of the scores.

    Returns:
        Output `[B, T, N, H]` and log-sum-exp float32 `[B, N, T]`.
    """
    B, T, N, H = q_BTNH.shape
    swizzled = (plgpu.TilingTransform((8, 64)), plgpu.SwizzleTransform(128))
    run = plgpu.kernel(
        partial(_program, scale=scale),
        out_type=(
            jax.ShapeDtypeStruct(q_BTNH.shape, q_BTNH.dtype),
            jax.ShapeDtypeStruct((B, N, T), jnp.float32),
        ),
        grid=(order.size,),
        grid_names=("item",),
        num_threads=3,
        thread_name="warpgroup",
        scratch_types=(
            plgpu.SMEM((2, ROWS, H), q_BTNH.dtype, transforms=swizzled),
            plgpu.SMEM((STAGES, BLOCK, H), q_BTNH.dtype, transforms=swizzled),
            plgpu.SMEM((STAGES, BLOCK, H), q_BTNH.dtype, transforms=swizzled),
            plgpu.SMEM((2, ROWS), jnp.float32),
            plgpu.Barrier(num_barriers=2),
            plgpu.Barrier(num_barriers=STAGES),
            plgpu.Barrier(num_barriers=STAGES),
            plgpu.Barrier(num_arrivals=2, num_barriers=STAGES),
            plgpu.Barrier(num_arrivals=2, num_barriers=STAGES),
            plgpu.Barrier(num_arrivals=2),
        ),
        compiler_params=plgpu.CompilerParams(approx_math=True),
    )
    return run(q_BTNH, k_BSKH, v_BSKH, runs_BKQ3, order)


def _program(
    q_ref, k_ref, v_ref, runs_ref, order_ref, out_ref, lse_ref,
    qo_smem, k_smem, v_smem, lse_smem, q_full, k_full, v_full, k_free, v_free, turn,
    *, scale: float,
):  # fmt: skip
    N, H = q_ref.shape[2:]
    S, K = k_ref.shape[1:3]
    query_blocks = runs_ref.shape[2]
    item = order_ref[lax.axis_index("item")]
    head = lax.rem(item, jnp.int32(N))
    query_block = lax.rem(lax.div(item, jnp.int32(N)), jnp.int32(query_blocks))
    row = lax.div(item, jnp.int32(N * query_blocks))
    kv_head = lax.div(head, jnp.int32(N // K))
    first, n_sink, lo = (runs_ref[row, kv_head, query_block, i] for i in range(3))
    diag = S // BLOCK - query_blocks + query_block
    steps = jnp.maximum(n_sink + diag + 1 - lo, 0)
    warpgroup = lax.axis_index("warpgroup")

    def next_turn():
        plgpu.barrier_arrive(turn)
        plgpu.barrier_wait(turn)

    @pl.when(warpgroup < 2)
    def _compute():
        plgpu.set_max_registers(232, action="increase")
        rows = pl.ds(query_block * BLOCK + warpgroup * ROWS, ROWS)
        qo, lse = qo_smem.at[warpgroup], lse_smem.at[warpgroup]
        plgpu.copy_gmem_to_smem(q_ref.at[row, rows, head], qo, q_full.at[warpgroup])
        plgpu.barrier_wait(q_full.at[warpgroup])
        by_row = plgpu.Layout.WGMMA.reduce(1)
        acc = plgpu.layout_cast(jnp.zeros((ROWS, H), jnp.float32), plgpu.Layout.WGMMA)
        top = plgpu.layout_cast(jnp.full((ROWS,), MASKED, jnp.float32), by_row)
        total = plgpu.layout_cast(jnp.zeros((ROWS,), jnp.float32), by_row)
        log2_scale = scale * math.log2(math.e)
        pl.when(warpgroup == 1)(next_turn)

        def visit(step, carry, diagonal):
            acc, top, total = carry
            slot = lax.rem(step, jnp.int32(STAGES))
            plgpu.barrier_wait(k_full.at[slot])

            def multiply(scores_ref):
                plgpu.wgmma(scores_ref, qo, k_smem.at[slot].T)
                next_turn()
                return scores_ref[...]

            scores = pl.run_scoped(multiply, plgpu.ACC((ROWS, BLOCK), jnp.float32))
            plgpu.barrier_arrive(k_free.at[slot])
            if diagonal:
                q_pos, k_pos = (
                    plgpu.broadcasted_iota(jnp.int32, scores.shape, axis, layout=plgpu.Layout.WGMMA) for axis in (0, 1)
                )
                scores = jnp.where(k_pos <= q_pos + warpgroup * ROWS, scores, MASKED)
            new_top = jnp.maximum(top, scores.max(axis=1) * log2_scale)
            decay = jnp.exp2(top - new_top)
            weights = jnp.exp2(scores * log2_scale - lax.broadcast_in_dim(new_top, scores.shape, [0]))
            acc = acc * lax.broadcast_in_dim(decay, acc.shape, [0])
            total = total * decay + weights.sum(axis=1)
            # The barrier ends the softmax here: none of it may move into this warpgroup's turn to multiply.
            acc, total, new_top, weights = lax.optimization_barrier((acc, total, new_top, weights.astype(q_ref.dtype)))
            plgpu.barrier_arrive(turn)
            plgpu.barrier_wait(v_full.at[slot])
            plgpu.barrier_wait(turn)
            acc = pl.run_state(lambda ref: plgpu.wgmma(ref, weights, v_smem.at[slot]))(plgpu.ACC.init(acc))
            plgpu.barrier_arrive(v_free.at[slot])
            return acc, new_top, total

        carry = lax.fori_loop(0, jnp.maximum(steps - 1, 0), partial(visit, diagonal=False), (acc, top, total))
        carry = lax.fori_loop(jnp.maximum(steps - 1, 0), steps, partial(visit, diagonal=True), carry)
        acc, top, total = carry
        pl.when(warpgroup == 0)(next_turn)
        # A block of padding has visited nothing.
        total = jnp.maximum(total, 1e-30)
        qo[...] = (acc / lax.broadcast_in_dim(total, acc.shape, [0])).astype(q_ref.dtype)
        lse[...] = (top + jnp.log2(total)) * math.log(2)
        plgpu.commit_smem()
        plgpu.copy_smem_to_gmem(qo, out_ref.at[row, rows, head])
        plgpu.copy_smem_to_gmem(lse, lse_ref.at[row, head, rows])
        plgpu.wait_smem_to_gmem(0)

    @pl.when(warpgroup == 2)
    def _load():
        plgpu.set_max_registers(40, action="decrease")

        def load(step, _):
            slot = lax.rem(step, jnp.int32(STAGES))
            block = lax.select(step < n_sink, first + step, lo + step - n_sink)
            at = (row, pl.ds(block * BLOCK, BLOCK), kv_head)
            for ref, smem, full, free in ((k_ref, k_smem, k_full, k_free), (v_ref, v_smem, v_full, v_free)):
                pl.when(step >= STAGES)(lambda free=free: plgpu.barrier_wait(free.at[slot]))
                plgpu.copy_gmem_to_smem(ref.at[at], smem.at[slot], full.at[slot])

        def drain(step, _):
            slot = lax.rem(step, jnp.int32(STAGES))
            plgpu.barrier_wait(k_free.at[slot])
            plgpu.barrier_wait(v_free.at[slot])

        lax.fori_loop(0, steps, load, None)
        lax.fori_loop(jnp.maximum(steps - STAGES, 0), steps, drain, None)
