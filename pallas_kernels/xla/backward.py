"""Backward pass of blockwise attention in plain XLA; it skips what the forward pass skips.

Tiles are transposed, keys by rows: then each of the five products has its contraction where XLA's CPU matmul wants it.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from pallas_kernels.partition import divided
from pallas_kernels.schedule import AttentionSpec
from pallas_kernels.xla.forward import (
    Folded,
    Tiling,
    Visits,
    dot,
    exp2,
    gather_keys,
    key_tile,
    list_tile,
    list_tiles,
    per_row,
    query_positions,
    query_tiles,
    traverse_schedule,
    visible,
)


def backward(
    operands: Folded,
    out_BKQRH: jax.Array,
    lse_BKQR: jax.Array,
    d_out_BKQRH: jax.Array,
    visits: Visits,
    spec: AttentionSpec,
    tiling: Tiling,
    d_lse_BKQR: jax.Array | None = None,
) -> Folded:
    """Gradients of q, k and v for the attention over `visits`; weights are recomputed from the log-sum-exp.

    A cotangent of the log-sum-exp joins the row sums of dO * O, since its slope in a score is the weight.
    """
    inner_BKQR = jnp.sum(d_out_BKQRH.astype(jnp.float32) * out_BKQRH.astype(jnp.float32), -1)
    if d_lse_BKQR is not None:
        inner_BKQR -= jnp.where(jnp.isneginf(lse_BKQR), 0.0, d_lse_BKQR)
    run = divided(partial(_backward, spec=spec, tiling=tiling), "BK", "BK")
    return run(operands, lse_BKQR, d_out_BKQRH, inner_BKQR, visits)


def _backward(
    operands: Folded,
    lse_BKQR: jax.Array,
    d_out_BKQRH: jax.Array,
    inner_BKQR: jax.Array,
    visits: Visits,
    *,
    spec: AttentionSpec,
    tiling: Tiling,
) -> Folded:
    B, K, Q, R, H = operands.q_BKQRH.shape
    k_PSH, v_PSH = (x.reshape(B * K, -1, H) for x in operands[1:])
    S = k_PSH.shape[1]
    k_PHS = jnp.swapaxes(k_PSH, 1, 2)
    rows = tiling.query * R
    log2_e = float(np.log2(np.e))

    def products(row_side, k_SH, k_HS, v_SH, mask_SR):
        """Contributions of one tile to dq (transposed), dk and dv."""
        q_RH, d_out_RH, lse_R, inner_R = row_side
        scores_SR = dot(k_SH, q_RH, (1, 1))
        weights_SR = exp2(scores_SR * (spec.scale * log2_e) - lse_R * log2_e)
        if mask_SR is not None:
            weights_SR = jnp.where(mask_SR, weights_SR, 0.0)
        weights_SR = lax.optimization_barrier(weights_SR)
        d_scores_SR = (weights_SR * (dot(v_SH, d_out_RH, (1, 1)) - inner_R)).astype(q_RH.dtype)
        return (
            dot(k_HS, d_scores_SR, (1, 0)),
            dot(d_scores_SR, q_RH, (1, 0)),
            dot(weights_SR.astype(q_RH.dtype), d_out_RH, (1, 0)),
        )

    def add(x_PSH, head, at, update_SH):
        size = (1, *update_SH.shape)
        row = lax.dynamic_slice(x_PSH, (head, at, 0), size)
        return lax.dynamic_update_slice(x_PSH, row + update_SH, (head, at, 0))

    def follow_list(head, grads, item):
        row_side, diag, ends_J = item
        q_pos = query_positions(diag[None], spec.block_size, spec)

        def visit(tile, carry):
            dq_HR, dk_PSH, dv_PSH = carry
            blocks, k_pos = list_tile(ends_J, tile, tiling, spec)
            k_SH, v_SH = (gather_keys(x, head, blocks, spec) for x in (k_PSH, v_PSH))
            mask_SR = visible(q_pos, k_pos[:, None], None, spec)
            more_dq, more_dk, more_dv = products(row_side, k_SH, k_SH.T, v_SH, mask_SR)
            for i, block in enumerate(blocks):
                part = slice(i * spec.block_size, (i + 1) * spec.block_size)
                dk_PSH, dv_PSH = (
                    add(x, head, block * spec.block_size, update[part])
                    for x, update in ((dk_PSH, more_dk), (dv_PSH, more_dv))
                )
            return dq_HR + more_dq, dk_PSH, dv_PSH

        carry = (jnp.zeros((H, spec.block_size)), *grads)
        dq_HR, *grads = lax.fori_loop(0, list_tiles(ends_J, tiling), visit, carry)
        return tuple(grads), dq_HR

    def query_tile(grads, item):
        index, row_side, (plan, ends_rGJ) = item
        head = index * tiling.query // Q
        row_side = jax.tree.map(lambda x: x.reshape(rows, *x.shape[2:]), row_side)
        q_pos = query_positions(plan.diag, rows, spec)

        def visit(carry, start, blocks, bounds):
            dq_HR, dk_PSH, dv_PSH = carry
            at, width = start * spec.block_size, blocks * spec.block_size
            k_SH, v_SH = (key_tile(x, head, start, blocks, spec) for x in (k_PSH, v_PSH))
            k_HS = lax.dynamic_slice(k_PHS, (head, 0, at), (1, H, width))[0]
            mask_SR = None
            if bounds is not None:
                k_pos = at + jnp.arange(width)
                lower, upper = (per_row(x, rows) for x in bounds)
                mask_SR = visible(q_pos, k_pos[:, None], (lower, upper), spec)
            more_dq, more_dk, more_dv = products(row_side, k_SH, k_HS, v_SH, mask_SR)
            return dq_HR + more_dq, add(dk_PSH, head, at, more_dk), add(dv_PSH, head, at, more_dv)

        dq_HR = jnp.zeros((H, rows))
        if ends_rGJ is not None:
            pairs = rows // spec.block_size
            split = jax.tree.map(lambda x: x.reshape(pairs, spec.block_size, *x.shape[1:]), row_side)
            items = (split, per_row(plan.diag, pairs), ends_rGJ.reshape(pairs, -1))
            grads, dq_GHR = lax.scan(lambda grads, item: follow_list(head, grads, item), grads, items)
            dq_HR = dq_GHR.swapaxes(0, 1).reshape(H, rows)
        dq_HR, *grads = traverse_schedule(plan, tiling, spec, visit, (dq_HR, *grads))
        return tuple(grads), (dq_HR.T * spec.scale).astype(operands.q_BKQRH.dtype)

    row_side, visit_tiles = query_tiles(((operands.q_BKQRH, d_out_BKQRH, lse_BKQR, inner_BKQR), visits), tiling)
    zeros = jnp.zeros((B * K, S, H))
    items = (jnp.arange(B * K * Q // tiling.query), row_side, visit_tiles)
    (dk, dv), dq = lax.scan(query_tile, (zeros, zeros), items)
    dtype = operands.k_BKSH.dtype
    return Folded(
        dq.reshape(B, K, Q, R, H),
        (dk * spec.scale).astype(dtype).reshape(B, K, S, H),
        dv.astype(dtype).reshape(B, K, S, H),
    )
