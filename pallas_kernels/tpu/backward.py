"""Backward kernel: gradients of q, k and v in one sweep of every query block, five matmuls for each tile.

Query blocks are visited in order. The gradient of q is summed in vector memory, those of k and v in HBM: a tile of
them is read, added to and written back next to the matmuls, so what the forward pass skips by its schedule or
lists costs nothing here either. Tiles are transposed, keys by rows: the statistics of the softmax then are rows
of lanes as they are stored, and only the smallest operand of the five products needs a transpose.

Two query blocks of a head must not run at once. On chips whose two cores act as one device each core therefore takes
half of the heads, dealt out by falling work so that both halves weigh about the same.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from pallas_kernels.schedule import AttentionSpec
from pallas_kernels.tpu.forward import MASKED, dot
from pallas_kernels.tpu.limits import compiler_params, padded_bytes, tile_width
from pallas_kernels.tpu.operands import Operands
from pallas_kernels.tpu.plan import LaunchSizes, Tables, head_work
from pallas_kernels.tpu.stream import Stream, following_step, run_tiles
from pallas_kernels.tpu.sweep import Sweep, make_sweep, tile_mask, widths


def backward_kernel(*refs: Any, has_lists: bool, sizes: LaunchSizes, spec: AttentionSpec, width: int):
    scalars, rest = refs[: 1 + len(Tables._fields)], iter(refs[1 + len(Tables._fields) :])
    order, tables = scalars[0], Tables(*scalars[1:])
    q_ref, d_out_ref, lse_ref, inner_ref, k_hbm, v_hbm = (next(rest) for _ in range(6))
    lists = (next(rest), next(rest)) if has_lists else (None, None)
    next(rest), next(rest)  # the zeros that dk and dv start from share their memory
    dq_ref, dk_hbm, dv_hbm, dq_HR, *buffers, buffer_ref, read, read_sums, written = rest
    k_buffer, v_buffer, old_sums, new_sums = buffers[0], buffers[1], buffers[2:4], buffers[4:]
    keys = Stream((k_hbm, v_hbm), (k_buffer, v_buffer), read)
    sums = Stream((dk_hbm, dv_hbm), old_sums, read_sums)
    updates = Stream((dk_hbm, dv_hbm), new_sums, written, writes=True)
    core, turn, step = (pl.program_id(axis) for axis in range(3))
    turns, steps = pl.num_programs(1), pl.num_programs(2)
    log2_e = float(np.log2(np.e))

    def sweep_of(turn: jax.Array, step: jax.Array, blocks: Any) -> Sweep:
        head = order[core * turns + turn]
        sweep = make_sweep(
            tables,
            blocks,
            jnp.minimum(head, sizes.heads - 1),
            step,
            with_middle=False,
            width=width,
            sizes=sizes,
            spec=spec,
        )
        return sweep._replace(near=jnp.where(head < sizes.heads, sweep.near, 0))

    def compute(tile: jax.Array, buffer: jax.Array, slots: int, masked: bool) -> None:
        keys.wait(buffer, slots)
        block = (spec.block_size, sizes.head_dim)
        k_SH, v_SH = (ref[buffer, :slots].reshape(slots * block[0], block[1]) for ref in (k_buffer, v_buffer))
        q_RH, d_out_RH = q_ref[...], d_out_ref[...]
        scores_SR = dot(k_SH, q_RH, (1, 1))
        if masked:
            heads = range(sizes.groups)
            mask = tile_mask(sweep, tile, slots, heads, spec, sizes.groups, keys_axis=0)
            scores_SR = jnp.where(mask, scores_SR, MASKED)
        weights_SR = jnp.exp2(scores_SR * (spec.scale * log2_e) - lse_ref[...] * log2_e)
        d_scores_SR = (weights_SR * (dot(v_SH, d_out_RH, (1, 1)) - inner_ref[...])).astype(q_RH.dtype)
        dq_HR[...] += dot(k_SH, d_scores_SR, (0, 0))
        gradients = dot(d_scores_SR, q_RH, (1, 0)), dot(weights_SR.astype(q_RH.dtype), d_out_RH, (1, 0))
        sums.wait(buffer, slots)
        pl.when(tile >= 2)(lambda: updates.wait_written(sweep, tile - 2, buffer))
        for old, new, gradient in zip(old_sums, new_sums, gradients, strict=True):
            new[buffer, :slots] = old[buffer, :slots] + gradient.reshape(slots, *block)

    def visit(tile: jax.Array, buffer: jax.Array) -> None:
        pl.when(tile == 0)(lambda: sums.start(sweep, tile, buffer))
        pl.when(tile + 1 < sweep.tiles)(lambda: sums.start(sweep, tile + 1, 1 - buffer))
        unmasked, slots = sweep.unmasked(tile, spec), sweep.slots(tile)
        pl.when(unmasked)(partial(compute, tile, buffer, width, False))
        for size in widths(width):
            pl.when(jnp.logical_not(unmasked) & (slots == size))(partial(compute, tile, buffer, size, True))
        updates.start(sweep, tile, buffer)

    sweep = sweep_of(turn, step, lists[0])
    next_turn, next_step = following_step(turn, step, steps)
    following = sweep_of(jnp.minimum(next_turn, turns - 1), next_step, lists[1])
    dq_HR[...] = jnp.zeros_like(dq_HR)
    run_tiles(keys, sweep, following, (turn == 0) & (step == 0), next_turn == turns, buffer_ref, visit)
    buffer, tiles = buffer_ref[0], sweep.tiles
    pl.when(tiles >= 2)(lambda: updates.wait_written(sweep, tiles - 2, buffer))
    pl.when(tiles >= 1)(lambda: updates.wait_written(sweep, tiles - 1, 1 - buffer))
    dq_ref[...] = (dq_HR[...].T * spec.scale).astype(dq_ref.dtype)


def deal_heads(work_P: jax.Array) -> jax.Array:
    """Order of the heads, padded to an even number: each half gets every second one by falling work."""
    P = work_P.shape[0]
    order = jnp.pad(jnp.argsort(-work_P), (0, P % 2), constant_values=P)
    return jnp.concatenate([order[0::2], order[1::2]]).astype(jnp.int32)


def backward_bytes(rows: int, head_dim: int, keys: int, item: int) -> int:
    """Vector memory of the kernel, bytes: `rows` queries and tiles of `keys` keys with numbers of `item` bytes."""
    return (
        6 * padded_bytes(rows, head_dim, item)
        + padded_bytes(head_dim, rows, 4)
        + 4 * padded_bytes(keys, head_dim, item + 8)
        + padded_bytes(keys, rows, 12 + 2 * item)
    )


def attention_backward(
    operands: Operands,
    out_PQRH: jax.Array,
    lse_PQ1R: jax.Array,
    d_out_PQRH: jax.Array,
    tables: Tables,
    lists: jax.Array | None,
    sizes: LaunchSizes,
    spec: AttentionSpec,
    *,
    d_lse_PQ1R: jax.Array | None = None,
) -> Operands:
    """Gradients of the operands, for the attention that tables and lists describe.

    Args:
        d_lse_PQ1R: cotangent of the log-sum-exp too; None where nothing depends on it.
    """
    q_PQRH, k_PJSH, v_PJSH = operands
    (P, Q, R, H), block = q_PQRH.shape, spec.block_size
    width = tile_width("backward", R, H, block)
    inner_PQ1R = jnp.sum(d_out_PQRH.astype(jnp.float32) * out_PQRH.astype(jnp.float32), -1)[:, :, None]
    saw_nothing = jnp.isneginf(lse_PQ1R)
    if d_lse_PQ1R is not None:
        inner_PQ1R -= jnp.where(saw_nothing, 0.0, d_lse_PQ1R)
    lse_PQ1R = jnp.where(saw_nothing, 0.0, lse_PQ1R)
    order = deal_heads(head_work(tables, lists, sizes, spec))
    turns = order.shape[0] // 2

    def here(core: jax.Array, turn: jax.Array, step: jax.Array, order: Any, *_: Any) -> tuple:
        return jnp.minimum(order[core * turns + turn], P - 1), step, 0, 0

    def after(core: jax.Array, turn: jax.Array, step: jax.Array, order: Any, *_: Any) -> tuple:
        turn, step = following_step(turn, step, Q)
        return here(core, jnp.minimum(turn, turns - 1), step, order)

    def mine(core: jax.Array, turn: jax.Array, step: jax.Array, order: Any, *_: Any) -> tuple:
        return order[core * turns + turn], step, 0, 0

    rows, row = (None, None, R, H), (None, None, 1, R)
    hbm = pl.BlockSpec(memory_space=pltpu.HBM)
    in_specs = [pl.BlockSpec(shape, here) for shape in (rows, rows, row, row)] + [hbm, hbm]
    inputs = [q_PQRH, d_out_PQRH, lse_PQ1R, inner_PQ1R, k_PJSH, v_PJSH]
    if lists is not None:
        shape = (None, None, *lists.shape[2:])
        in_specs += [pl.BlockSpec(shape, index, memory_space=pltpu.SMEM) for index in (here, after)]
        inputs += [lists, lists]
    first_sum = 1 + len(tables) + len(inputs)
    zeros = jnp.zeros(k_PJSH.shape, jnp.float32)
    buffers = [pltpu.VMEM((2, width, block, H), k_PJSH.dtype)] * 2 + [pltpu.VMEM((2, width, block, H), jnp.float32)] * 4
    item = q_PQRH.dtype.itemsize
    need = backward_bytes(R, H, width * block, item)
    pairs = P * sum(range(sizes.geometry.first_query_block + 1, sizes.geometry.key_blocks + 1)) * R * block
    dq, dk, dv = pl.pallas_call(
        partial(backward_kernel, has_lists=lists is not None, sizes=sizes, spec=spec, width=width),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=1 + len(tables),
            grid=(2, turns, Q),
            in_specs=[*in_specs, hbm, hbm],
            out_specs=[pl.BlockSpec(rows, mine), hbm, hbm],
            scratch_shapes=[
                pltpu.VMEM((H, R), jnp.float32),
                *buffers,
                pltpu.SMEM((1,), jnp.int32),
                *[pltpu.SemaphoreType.DMA((2,))] * 3,
            ],
        ),
        out_shape=[
            jax.ShapeDtypeStruct((2 * turns, Q, R, H), q_PQRH.dtype),
            *[jax.ShapeDtypeStruct(zeros.shape, zeros.dtype)] * 2,
        ],
        input_output_aliases={first_sum: 1, first_sum + 1: 2},
        compiler_params=compiler_params(need),
        cost_estimate=pl.CostEstimate(
            flops=10 * pairs * H, transcendentals=pairs, bytes_accessed=pairs // R * H * (2 * item + 16)
        ),
        name="attention_backward",
    )(order, *tables, *inputs, zeros, zeros)
    return Operands(dq[:P], (dk * spec.scale).astype(k_PJSH.dtype), dv.astype(v_PJSH.dtype))
