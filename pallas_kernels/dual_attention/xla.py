"""Dual and routed attention in plain XLA: both outputs from one sweep over the keys.

Sink, local and diagonal blocks come first; the running softmax is then the sparse output, and going on over the middle
makes it the full one. So the pair costs one full attention (Elastic Attention computes every head twice).
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from pallas_kernels.blockwise import Extend, Folded, Softmax, attend, fold, query_schedule
from pallas_kernels.blockwise_backward import backward
from pallas_kernels.layout import by_block, clear_padding, unfold_queries
from pallas_kernels.schedule import AttentionSpec, Schedule


class Branch(NamedTuple):
    """Output `[B, K, Q, R, H]` and log-sum-exp `[B, K, Q, R]`."""

    out: jax.Array
    lse: jax.Array


def full_schedule(plan: Schedule) -> Schedule:
    """The schedule of the same query blocks without holes."""
    return Schedule(plan.first, jnp.zeros_like(plan.n_sink), plan.first, plan.diag)


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def both(operands: Folded, plan: Schedule, spec: AttentionSpec) -> tuple[jax.Array, jax.Array]:
    """(full, sparse) outputs in the type of q."""
    return _both_forward(operands, plan, spec)[0]


def _both_forward(operands: Folded, plan: Schedule, spec: AttentionSpec):
    def collect(index: jax.Array, near: Softmax, plan: Schedule, extend: Extend):
        everything = extend(near, *plan.middle)
        dtype = operands.q_BKQRH.dtype
        return tuple(Branch(x.output().astype(dtype), x.lse(spec.scale)) for x in (everything, near))

    full, sparse = attend(operands, plan, spec, collect)
    return (full.out, sparse.out), (operands, plan, full, sparse)


def _both_backward(spec: AttentionSpec, saved, d_outs: tuple[jax.Array, jax.Array]):
    operands, plan, full, sparse = saved
    d_full = backward(operands, full.out, full.lse, d_outs[0], full_schedule(plan), spec)
    d_sparse = backward(operands, sparse.out, sparse.lse, d_outs[1], plan, spec)
    return jax.tree.map(jnp.add, d_full, d_sparse), None


both.defvjp(_both_forward, _both_backward)


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def routed(operands: Folded, z_BKQ: jax.Array, plan: Schedule, spec: AttentionSpec) -> jax.Array:
    """The full output where z is 1, the sparse one where it is 0; its gradient in z is <dO, full - sparse>."""
    return _routed_forward(operands, z_BKQ, plan, spec)[0]


def _routed_forward(operands: Folded, z_BKQ: jax.Array, plan: Schedule, spec: AttentionSpec):
    z_P, dtype = z_BKQ.reshape(-1), operands.q_BKQRH.dtype

    def collect(index: jax.Array, near: Softmax, plan: Schedule, extend: Extend):
        everything = extend(near, *plan.middle)
        full, sparse = everything.output(), near.output()
        is_full = z_P[index] > 0.5
        chosen = Branch(
            jnp.where(is_full, full, sparse).astype(dtype),
            jnp.where(is_full, everything.lse(spec.scale), near.lse(spec.scale)),
        )
        return chosen, (full - sparse).astype(dtype)

    chosen, difference = attend(operands, plan, spec, collect)
    return chosen.out, (operands, z_BKQ, plan, chosen, difference)


def _routed_backward(spec: AttentionSpec, saved, d_out: jax.Array):
    operands, z_BKQ, plan, chosen, difference = saved
    dz_BKQ = jnp.einsum("bkqrh,bkqrh->bkq", d_out, difference, preferred_element_type=jnp.float32)
    chosen_plan = jax.tree.map(partial(jnp.where, z_BKQ > 0.5), full_schedule(plan), plan)
    return backward(operands, chosen.out, chosen.lse, d_out, chosen_plan, spec), dz_BKQ.astype(z_BKQ.dtype), None


routed.defvjp(_routed_forward, _routed_backward)


def dual_attention_xla(
    q_BTNH: jax.Array,
    k_BSKH: jax.Array,
    v_BSKH: jax.Array,
    spec: AttentionSpec,
    *,
    segment_ids: jax.Array | None = None,
    lengths: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
    """See `dual_attention`."""
    operands, rows, geometry = fold(q_BTNH, k_BSKH, v_BSKH, spec, lengths, segment_ids)
    all_sparse = jnp.ones((q_BTNH.shape[0], k_BSKH.shape[2]), jnp.bool_)
    plan = query_schedule(all_sparse, rows, spec, geometry)
    full, sparse = (clear_padding(unfold_queries(x, geometry), rows.valid_BS) for x in both(operands, plan, spec))
    return full, sparse


def routed_attention_xla(
    q_BTNH: jax.Array,
    k_BSKH: jax.Array,
    v_BSKH: jax.Array,
    z: jax.Array,
    spec: AttentionSpec,
    *,
    segment_ids: jax.Array | None = None,
    lengths: jax.Array | None = None,
) -> jax.Array:
    """See `routed_attention`."""
    operands, rows, geometry = fold(q_BTNH, k_BSKH, v_BSKH, spec, lengths, segment_ids)
    plan = query_schedule(jnp.ones_like(z, jnp.bool_), rows, spec, geometry)
    z_BKQ = by_block(z, rows)[:, :, geometry.first_query_block :]
    out = unfold_queries(routed(operands, z_BKQ, plan, spec), geometry)
    return clear_padding(out, rows.valid_BS)
