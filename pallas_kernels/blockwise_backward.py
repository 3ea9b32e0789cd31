"""Backward pass of blockwise attention in plain XLA; it skips what the forward pass skips.

Tiles are transposed, keys by rows: then each of the five products has its contraction where XLA's CPU matmul wants it.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from pallas_kernels.blockwise import Folded, dot, exp2, key_tile, tile_blocks, traverse_schedule, visible
from pallas_kernels.schedule import AttentionSpec, Schedule


def backward(
    operands: Folded,
    out_BKQRH: jax.Array,
    lse_BKQR: jax.Array,
    d_out_BKQRH: jax.Array,
    plan: Schedule,
    spec: AttentionSpec,
) -> Folded:
    """Gradients of q, k and v for the attention that `plan` describes; weights are recomputed from the log-sum-exp."""
    B, K, Q, R, H = operands.q_BKQRH.shape
    k_PSH, v_PSH = (x.reshape(B * K, -1, H) for x in operands[1:])
    S = k_PSH.shape[1]
    k_PHS = jnp.swapaxes(k_PSH, 1, 2)
    blocks = tile_blocks(S, spec)
    log2_e = float(np.log2(np.e))
    inner_BKQR = jnp.sum(d_out_BKQRH.astype(jnp.float32) * out_BKQRH.astype(jnp.float32), -1)

    def query_block(grads, item):
        q_RH, d_out_RH, lse_R, inner_R, plan, head = item
        q_pos = plan.diag * spec.block_size + jnp.tile(jnp.arange(spec.block_size), R // spec.block_size)

        def visit(carry, start, blocks, bounds):
            dq_HR, dk_PSH, dv_PSH = carry
            at, width = start * spec.block_size, blocks * spec.block_size
            k_SH, v_SH = (key_tile(x, head, start, blocks, spec) for x in (k_PSH, v_PSH))
            k_HS = lax.dynamic_slice(k_PHS, (head, 0, at), (1, H, width))[0]
            scores_SR = dot(k_SH, q_RH, (1, 1))
            weights_SR = exp2(scores_SR * (spec.scale * log2_e) - lse_R * log2_e)
            if bounds is not None:
                k_pos = at + jnp.arange(width)
                weights_SR = jnp.where(visible(q_pos, k_pos[:, None], bounds, spec), weights_SR, 0.0)
            weights_SR = lax.optimization_barrier(weights_SR)
            d_scores_SR = (weights_SR * (dot(v_SH, d_out_RH, (1, 1)) - inner_R)).astype(q_RH.dtype)

            def add(x_PSH, update):
                row = lax.dynamic_slice(x_PSH, (head, at, 0), (1, width, H))
                return lax.dynamic_update_slice(x_PSH, row + update, (head, at, 0))

            return (
                dq_HR + dot(k_HS, d_scores_SR, (1, 0)),
                add(dk_PSH, dot(d_scores_SR, q_RH, (1, 0))),
                add(dv_PSH, dot(weights_SR.astype(q_RH.dtype), d_out_RH, (1, 0))),
            )

        dq_HR, *grads = traverse_schedule(plan, blocks, spec, visit, (jnp.zeros((H, R)), *grads))
        return tuple(grads), (dq_HR.T * spec.scale).astype(q_RH.dtype)

    items = (
        operands.q_BKQRH.reshape(-1, R, H),
        d_out_BKQRH.reshape(-1, R, H),
        lse_BKQR.reshape(-1, R),
        inner_BKQR.reshape(-1, R),
        Schedule(*(x.reshape(-1) for x in plan)),
        jnp.arange(B * K * Q) // Q,
    )
    zeros = jnp.zeros((B * K, S, H))
    (dk, dv), dq = lax.scan(query_block, (zeros, zeros), items)
    dtype = operands.k_BKSH.dtype
    return Folded(
        dq.reshape(B, K, Q, R, H),
        (dk * spec.scale).astype(dtype).reshape(B, K, S, H),
        dv.astype(dtype).reshape(B, K, S, H),
    )
