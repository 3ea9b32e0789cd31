"""Forward kernel of hybrid attention for Hopper in Pallas Mosaic GPU, after FlashAttention-3 (arXiv 2407.08608).

A program has one block of 128 queries of one head and three warpgroups. The third loads: it copies the key blocks that
the plan names into a ring of STAGES slots. The first two compute, 64 rows of queries each, and take turns:

    warpgroup 0:  multiply | softmax  | multiply | softmax  | ...
    warpgroup 1:           | multiply | softmax  | multiply | ...

so that the tensor cores work for one while the other has its softmax, which they cannot do. Everything that one side
must know of another goes through barriers:

* `q_full`: the queries of a warpgroup have arrived;
* `k_full`, `v_full`: a slot has been filled, loader to both;
* `k_free`, `v_free`: both have read a slot, which may be filled again;
* `turn`: needs both compute warpgroups to arrive. One that arrives and waits (`next_turn`) goes on only when the other
  arrives as well, and that hands the tensor cores over.

Named barriers and inline assembly are left out on purpose: the interpreter knows neither.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any, NamedTuple

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


class Slots(NamedTuple):
    """The ring of key blocks, refs: keys and values `[STAGES, BLOCK, H]`, and the barriers of each slot."""

    k: Any
    v: Any
    k_full: Any
    v_full: Any
    k_free: Any
    v_free: Any


class Visits(NamedTuple):
    """Key blocks of a query block: a run of `n_sink` from `first` on, then the run from `lo` to the diagonal."""

    first: jax.Array
    n_sink: jax.Array
    lo: jax.Array
    steps: jax.Array
    """How many there are; the diagonal block is the last."""

    def block(self, step: jax.Array) -> jax.Array:
        return lax.select(step < self.n_sink, self.first + step, self.lo + step - self.n_sink)


def _slot(step: jax.Array) -> jax.Array:
    return lax.rem(step, jnp.int32(STAGES))


def _program(
    q_ref, k_ref, v_ref, runs_ref, order_ref, out_ref, lse_ref,
    qo_smem, k_smem, v_smem, lse_smem, q_full, k_full, v_full, k_free, v_free, turn,
    *, scale: float,
):  # fmt: skip
    """Finds out which item this program has, and gives each warpgroup its part."""
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
    visits = Visits(first, n_sink, lo, jnp.maximum(n_sink + diag + 1 - lo, 0))
    slots = Slots(k_smem, v_smem, k_full, v_full, k_free, v_free)
    warpgroup = lax.axis_index("warpgroup")

    @pl.when(warpgroup < 2)
    def _compute():
        plgpu.set_max_registers(232, action="increase")
        rows = pl.ds(query_block * BLOCK + warpgroup * ROWS, ROWS)
        # The queries are not needed any more when the output is ready, which takes their place.
        qo, lse = qo_smem.at[warpgroup], lse_smem.at[warpgroup]
        plgpu.copy_gmem_to_smem(q_ref.at[row, rows, head], qo, q_full.at[warpgroup])
        plgpu.barrier_wait(q_full.at[warpgroup])
        _attend(qo, lse, slots, visits, turn, warpgroup, q_ref.dtype, H, scale)
        plgpu.commit_smem()
        plgpu.copy_smem_to_gmem(qo, out_ref.at[row, rows, head])
        plgpu.copy_smem_to_gmem(lse, lse_ref.at[row, head, rows])
        plgpu.wait_smem_to_gmem(0)

    @pl.when(warpgroup == 2)
    def _load():
        plgpu.set_max_registers(40, action="decrease")
        _load_keys(k_ref, v_ref, row, kv_head, slots, visits)


def _load_keys(k_ref, v_ref, row: jax.Array, kv_head: jax.Array, slots: Slots, visits: Visits) -> None:
    """Fills the ring, one slot for each step; a slot is filled again once both warpgroups have read it."""

    def load(step, _):
        slot = _slot(step)
        at = (row, pl.ds(visits.block(step) * BLOCK, BLOCK), kv_head)
        for ref, smem, full, free in (
            (k_ref, slots.k, slots.k_full, slots.k_free),
            (v_ref, slots.v, slots.v_full, slots.v_free),
        ):
            pl.when(step >= STAGES)(lambda free=free: plgpu.barrier_wait(free.at[slot]))
            plgpu.copy_gmem_to_smem(ref.at[at], smem.at[slot], full.at[slot])

    def drain(step, _):
        # A barrier must be waited for as often as it completes.
        plgpu.barrier_wait(slots.k_free.at[_slot(step)])
        plgpu.barrier_wait(slots.v_free.at[_slot(step)])

    lax.fori_loop(0, visits.steps, load, None)
    lax.fori_loop(jnp.maximum(visits.steps - STAGES, 0), visits.steps, drain, None)


def _attend(
    qo, lse, slots: Slots, visits: Visits, turn, warpgroup: jax.Array, dtype: jnp.dtype, head_dim: int, scale: float
) -> None:
    """Online softmax of the 64 queries in `qo` over all steps; leaves the output in `qo`, the log-sum-exp in `lse`.

    A step is: wait for this warpgroup's turn; multiply queries and keys; hand over; softmax; wait for the turn again;
    multiply weights and values, and with the turn still held go on to the next step. Warpgroup 1 begins half a step
    later, after a hand-over of its own, and warpgroup 0 ends with one more: both must arrive equally often.
    """
    log2_scale = scale * math.log2(math.e)

    def next_turn():
        plgpu.barrier_arrive(turn)
        plgpu.barrier_wait(turn)

    def visit(step, carry, diagonal):
        acc, top, total = carry
        slot = _slot(step)
        plgpu.barrier_wait(slots.k_full.at[slot])

        def multiply(scores_ref):
            plgpu.wgmma(scores_ref, qo, slots.k.at[slot].T)
            # The product has only been issued: the turn goes over now, and reading the scores waits for the result.
            next_turn()
            return scores_ref[...]

        scores = pl.run_scoped(multiply, plgpu.ACC((ROWS, BLOCK), jnp.float32))
        plgpu.barrier_arrive(slots.k_free.at[slot])
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
        acc, total, new_top, weights = lax.optimization_barrier((acc, total, new_top, weights.astype(dtype)))
        # Arrive first, so that the other warpgroup need not wait until the values are here.
        plgpu.barrier_arrive(turn)
        plgpu.barrier_wait(slots.v_full.at[slot])
        plgpu.barrier_wait(turn)
        acc = pl.run_state(lambda ref: plgpu.wgmma(ref, weights, slots.v.at[slot]))(plgpu.ACC.init(acc))
        plgpu.barrier_arrive(slots.v_free.at[slot])
        return acc, new_top, total

    by_row = plgpu.Layout.WGMMA.reduce(1)
    acc = plgpu.layout_cast(jnp.zeros((ROWS, head_dim), jnp.float32), plgpu.Layout.WGMMA)
    top = plgpu.layout_cast(jnp.full((ROWS,), MASKED, jnp.float32), by_row)
    total = plgpu.layout_cast(jnp.zeros((ROWS,), jnp.float32), by_row)
    pl.when(warpgroup == 1)(next_turn)
    before_diagonal = jnp.maximum(visits.steps - 1, 0)
    carry = lax.fori_loop(0, before_diagonal, partial(visit, diagonal=False), (acc, top, total))
    acc, top, total = lax.fori_loop(before_diagonal, visits.steps, partial(visit, diagonal=True), carry)
    pl.when(warpgroup == 0)(next_turn)
    # A block of padding has visited nothing.
    total = jnp.maximum(total, 1e-30)
    qo[...] = (acc / lax.broadcast_in_dim(total, acc.shape, [0])).astype(dtype)
    lse[...] = (top + jnp.log2(total)) * math.log(2)
