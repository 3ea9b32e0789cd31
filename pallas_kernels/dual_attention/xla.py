"""Dual and routed attention in plain XLA: both outputs from one sweep over the keys.

Sink, local and diagonal blocks come first; the running softmax is then the sparse output, and going on over the middle
makes it the full one. So the pair costs one full attention (Elastic Attention computes every head twice).
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from pallas_kernels.blockwise import Folded, Softmax, backward, fold, query_schedule, sweep, sweep_middle
from pallas_kernels.layout import by_block, clear_padding, unfold_queries
from pallas_kernels.schedule import AttentionSpec, Schedule


class Branch(NamedTuple):
    """Output `[B, K, I, R, H]` and log-sum-exp `[B, K, I, R]`, float32."""

    out: jax.Array
    lse: jax.Array


def attend_both(operands: Folded, plan: Schedule, spec: AttentionSpec) -> tuple[Branch, Branch]:
    """(full, sparse) branches; `plan` is the sparse schedule."""
    B, K, I, R, H = operands.q_BKIRH.shape

    def query_block(item):
        q_RH, plan, head = item
        near = sweep(Softmax.empty(R, H), q_RH, operands, head, plan, spec)
        everything = sweep_middle(near, q_RH, operands, head, plan, spec)
        return tuple(Branch(state.output(), state.lse(spec.scale)) for state in (everything, near))

    flat_plan = Schedule(*(x.reshape(-1) for x in plan))
    branches = lax.map(query_block, (operands.q_BKIRH.reshape(-1, R, H), flat_plan, jnp.arange(B * K * I) // I))
    full, sparse = (Branch(out.reshape(B, K, I, R, H), lse.reshape(B, K, I, R)) for out, lse in branches)
    return full, sparse


def full_schedule(plan: Schedule) -> Schedule:
    """The schedule of the same query blocks without holes."""
    return Schedule(plan.first, jnp.zeros_like(plan.n_sink), plan.first, plan.diag)


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def both(operands: Folded, plan: Schedule, spec: AttentionSpec) -> tuple[jax.Array, jax.Array]:
    """(full, sparse) outputs in the type of q."""
    return _both_forward(operands, plan, spec)[0]


def _both_forward(operands, plan, spec):
    full, sparse = attend_both(operands, plan, spec)
    dtype = operands.q_BKIRH.dtype
    full, sparse = (Branch(x.out.astype(dtype), x.lse) for x in (full, sparse))
    return (full.out, sparse.out), (operands, plan, full, sparse)


def _both_backward(spec, saved, d_outs):
    operands, plan, full, sparse = saved
    d_full = backward(operands, full.out, full.lse, d_outs[0], full_schedule(plan), spec)
    d_sparse = backward(operands, sparse.out, sparse.lse, d_outs[1], plan, spec)
    return Folded(*(a + b for a, b in zip(d_full, d_sparse, strict=True))), None


both.defvjp(_both_forward, _both_backward)


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def routed(operands: Folded, z_BKI: jax.Array, plan: Schedule, spec: AttentionSpec) -> jax.Array:
    """The full output where z is 1, the sparse one where it is 0; its gradient in z is <dO, full - sparse>."""
    return _routed_forward(operands, z_BKI, plan, spec)[0]


def _routed_forward(operands, z_BKI, plan, spec):
    full, sparse = attend_both(operands, plan, spec)
    dtype = operands.q_BKIRH.dtype
    is_full = z_BKI[..., None] > 0.5
    out = jnp.where(is_full[..., None], full.out, sparse.out).astype(dtype)
    lse = jnp.where(is_full, full.lse, sparse.lse)
    return out, (operands, z_BKI, plan, out, lse, (full.out - sparse.out).astype(dtype))


def _routed_backward(spec, saved, d_out):
    operands, z_BKI, plan, out, lse, difference = saved
    dz_BKI = jnp.einsum("bkirh,bkirh->bki", d_out, difference, preferred_element_type=jnp.float32)
    chosen = jax.tree.map(partial(jnp.where, z_BKI > 0.5), full_schedule(plan), plan)
    return Folded(*backward(operands, out, lse, d_out, chosen, spec)), dz_BKI.astype(z_BKI.dtype), None


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
    z_BKI = by_block(z, rows)[:, :, geometry.first_query_block :]
    out = unfold_queries(routed(operands, z_BKI, plan, spec), geometry)
    return clear_padding(out, rows.valid_BS)
