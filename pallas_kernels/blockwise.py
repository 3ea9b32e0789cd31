"""Online softmax over key blocks in plain XLA: the inner loops of every attention op without a kernel of its own.

Work that the schedule leaves out is never started: trip counts are run-time values, nothing is computed and masked
away outside the diagonal block. Matrix products take the input type and accumulate in float32.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from pallas_kernels.layout import Geometry, Rows, by_block, clear_padding, describe_rows, fold_keys, fold_queries
from pallas_kernels.schedule import AttentionSpec, Schedule, block_schedule

MASKED = -1e30


class Folded(NamedTuple):
    """Operands in whole blocks."""

    q_BKIRH: jax.Array
    k_BKSH: jax.Array
    v_BKSH: jax.Array


class Softmax(NamedTuple):
    """Running state of one query block: unnormalised output, row maxima of the raw scores, row sums."""

    acc_RH: jax.Array
    top_R: jax.Array
    sum_R: jax.Array

    @classmethod
    def empty(cls, rows: int, head_dim: int) -> Softmax:
        return cls(jnp.zeros((rows, head_dim)), jnp.full((rows,), MASKED), jnp.zeros((rows,)))

    def output(self) -> jax.Array:
        return self.acc_RH / jnp.maximum(self.sum_R, 1e-30)[:, None]

    def lse(self, scale: float) -> jax.Array:
        """Log of the sum of exp(scale * score); 0 for rows that saw nothing."""
        return jnp.where(self.sum_R > 0, self.top_R * scale + jnp.log(jnp.maximum(self.sum_R, 1e-30)), 0.0)


def dot(a: jax.Array, b: jax.Array, contract: tuple[int, int]) -> jax.Array:
    return lax.dot_general(
        a, b, (((contract[0],), (contract[1],)), ((), ())), preferred_element_type=jnp.float32, precision="highest"
    )


def fold(
    q_BTNH: jax.Array, k_BSKH: jax.Array, v_BSKH: jax.Array, spec: AttentionSpec, lengths, segment_ids
) -> tuple[Folded, Rows, Geometry]:
    geometry = Geometry(spec.block_size, q_BTNH.shape[1], k_BSKH.shape[1])
    rows = describe_rows(q_BTNH.shape[0], geometry, lengths, segment_ids)
    q, k, v = (clear_padding(x, rows.valid_BS) for x in (q_BTNH, k_BSKH, v_BSKH))
    folded = Folded(fold_queries(q, k.shape[2], geometry), fold_keys(k, geometry), fold_keys(v, geometry))
    return folded, rows, geometry


def query_schedule(sparse: jax.Array, rows: Rows, spec: AttentionSpec, geometry: Geometry) -> Schedule:
    """Schedules of all query blocks, each field `[B, K, I]`; `sparse` is `[B, K]`, `[B, M, K]`."""
    first = geometry.first_query_block
    sparse_BKI = by_block(sparse, rows)[:, :, first:]
    start_BKI = jnp.broadcast_to(rows.start_BJ[:, None, first:], sparse_BKI.shape)
    diag_BKI = jnp.broadcast_to(jnp.arange(first, geometry.key_blocks), sparse_BKI.shape)
    return block_schedule(sparse_BKI, start_BKI, diag_BKI, spec)


def visible(rows: int, diag: jax.Array, block: jax.Array, spec: AttentionSpec) -> jax.Array:
    """Token-level mask of the pair (query block `diag`, key block `block`): causal, inside the window."""
    token = jnp.arange(spec.block_size)
    distance = (diag - block) * spec.block_size + token[:, None] - token
    mask = distance >= 0
    if spec.window is not None:
        mask &= distance < spec.window
    return jnp.tile(mask, (rows // spec.block_size, 1))


def key_block(x_BKSH: jax.Array, head: jax.Array, block: jax.Array, spec: AttentionSpec) -> jax.Array:
    """One block of the keys or values of flat head b * K + k."""
    flat = x_BKSH.reshape(-1, *x_BKSH.shape[2:])
    return lax.dynamic_slice(flat, (head, block * spec.block_size, 0), (1, spec.block_size, flat.shape[2]))[0]


def absorb(
    state: Softmax, q_RH: jax.Array, k_SH: jax.Array, v_SH: jax.Array, mask_RS: jax.Array | None, scale: float
) -> Softmax:
    """Adds one key block to a running softmax."""
    scores = dot(q_RH, k_SH, (1, 1))
    if mask_RS is not None:
        scores = jnp.where(mask_RS, scores, MASKED)
    top = jnp.maximum(state.top_R, scores.max(1))
    weights = jnp.exp((scores - top[:, None]) * scale)
    decay = jnp.exp((state.top_R - top) * scale)
    out = dot(weights.astype(v_SH.dtype), v_SH, (1, 0))
    return Softmax(state.acc_RH * decay[:, None] + out, top, state.sum_R * decay + weights.sum(1))


def sweep(
    state: Softmax, q_RH: jax.Array, operands: Folded, head: jax.Array, plan: Schedule, spec: AttentionSpec
) -> Softmax:
    """Visits the scheduled blocks of one query block, the diagonal last."""

    def step(t, state, masked):
        block = plan.block(t)
        mask = visible(q_RH.shape[0], plan.diag, block, spec) if masked else None
        k = key_block(operands.k_BKSH, head, block, spec)
        v = key_block(operands.v_BKSH, head, block, spec)
        return absorb(state, q_RH, k, v, mask, spec.scale)

    last = jnp.maximum(plan.steps - 1, 0)
    state = lax.fori_loop(0, last, lambda t, s: step(t, s, spec.window is not None), state)
    return lax.fori_loop(last, plan.steps, lambda t, s: step(t, s, True), state)


def sweep_middle(
    state: Softmax, q_RH: jax.Array, operands: Folded, head: jax.Array, plan: Schedule, spec: AttentionSpec
) -> Softmax:
    """Visits the blocks between the sinks and the local blocks."""

    def step(block, state):
        mask = visible(q_RH.shape[0], plan.diag, block, spec) if spec.window is not None else None
        k = key_block(operands.k_BKSH, head, block, spec)
        v = key_block(operands.v_BKSH, head, block, spec)
        return absorb(state, q_RH, k, v, mask, spec.scale)

    return lax.fori_loop(*plan.middle, step, state)


class Gradients(NamedTuple):
    dq_BKIRH: jax.Array
    dk_BKSH: jax.Array
    dv_BKSH: jax.Array


def backward(
    operands: Folded, out: jax.Array, lse_BKIR: jax.Array, d_out: jax.Array, plan: Schedule, spec: AttentionSpec
) -> Gradients:
    """Gradients of the attention that `plan` describes, weights recomputed from the log-sum-exp."""
    B, K, I, R, H = operands.q_BKIRH.shape
    q_PRH, d_out_PRH = (x.reshape(-1, R, H) for x in (operands.q_BKIRH, d_out))
    flat_plan = Schedule(*(x.reshape(-1) for x in plan))
    inner_PR = jnp.sum(d_out.astype(jnp.float32) * out.astype(jnp.float32), -1).reshape(-1, R)
    lse_PR = lse_BKIR.reshape(-1, R)
    S = operands.k_BKSH.shape[2]

    def query_block(grads, item):
        q_RH, d_out_RH, lse_R, inner_R, plan, head = item

        def step(t, carry, masked):
            dq_RH, dk_NSH, dv_NSH = carry
            block = plan.block(t)
            k_SH = key_block(operands.k_BKSH, head, block, spec)
            v_SH = key_block(operands.v_BKSH, head, block, spec)
            weights = jnp.exp(dot(q_RH, k_SH, (1, 1)) * spec.scale - lse_R[:, None])
            if masked:
                weights = jnp.where(visible(R, plan.diag, block, spec), weights, 0.0)
            d_scores = weights * (dot(d_out_RH, v_SH, (1, 1)) - inner_R[:, None]) * spec.scale
            weights, d_scores = weights.astype(k_SH.dtype), d_scores.astype(k_SH.dtype)
            at = (head, block * spec.block_size, 0)
            size = (1, spec.block_size, H)
            dk = lax.dynamic_slice(dk_NSH, at, size) + dot(d_scores, q_RH, (0, 0))
            dv = lax.dynamic_slice(dv_NSH, at, size) + dot(weights, d_out_RH, (0, 0))
            return (
                dq_RH + dot(d_scores, k_SH, (1, 0)),
                lax.dynamic_update_slice(dk_NSH, dk, at),
                lax.dynamic_update_slice(dv_NSH, dv, at),
            )

        last = jnp.maximum(plan.steps - 1, 0)
        carry = (jnp.zeros((R, H)), *grads)
        carry = lax.fori_loop(0, last, lambda t, c: step(t, c, spec.window is not None), carry)
        dq_RH, *grads = lax.fori_loop(last, plan.steps, lambda t, c: step(t, c, True), carry)
        return tuple(grads), dq_RH.astype(q_RH.dtype)

    zeros = jnp.zeros((B * K, S, H))
    heads = jnp.arange(B * K * I) // I
    (dk, dv), dq = lax.scan(query_block, (zeros, zeros), (q_PRH, d_out_PRH, lse_PR, inner_PR, flat_plan, heads))
    dtype = operands.k_BKSH.dtype
    return Gradients(
        dq.reshape(B, K, I, R, H), dk.reshape(B, K, S, H).astype(dtype), dv.reshape(B, K, S, H).astype(dtype)
    )
