"""Hybrid attention on NVIDIA GPUs from compute capability 8.0, in Triton."""

from __future__ import annotations

from functools import partial

import jax

from pallas_kernels.gpu.attention import attend, backward
from pallas_kernels.gpu.plan import Plan, make_plan
from pallas_kernels.layout import Geometry, describe_rows
from pallas_kernels.schedule import AttentionSpec


@partial(jax.custom_vjp, nondiff_argnums=(4,))
def planned_attention(
    q_BTNH: jax.Array, k_BSKH: jax.Array, v_BSKH: jax.Array, plan: Plan, spec: AttentionSpec
) -> jax.Array:
    """Attention of every query to the blocks of the plan."""
    return attend(q_BTNH, k_BSKH, v_BSKH, plan, spec)["out"]


def _forward(q_BTNH: jax.Array, k_BSKH: jax.Array, v_BSKH: jax.Array, plan: Plan, spec: AttentionSpec):
    written = attend(q_BTNH, k_BSKH, v_BSKH, plan, spec)
    return written["out"], (q_BTNH, k_BSKH, v_BSKH, written["out"], written["lse"], plan)


def _backward(spec: AttentionSpec, saved, d_out_BTNH: jax.Array):
    q_BTNH, k_BSKH, v_BSKH, out_BTNH, lse_BNT, plan = saved
    return *backward(q_BTNH, k_BSKH, v_BSKH, out_BTNH, lse_BNT, d_out_BTNH, plan, spec), None


planned_attention.defvjp(_forward, _backward)


def hybrid_attention_triton(
    q_BTNH: jax.Array,
    k_BSKH: jax.Array,
    v_BSKH: jax.Array,
    mode: jax.Array,
    spec: AttentionSpec,
    *,
    block_mask: jax.Array | None = None,
    full_block_mask: jax.Array | None = None,
    segment_ids: jax.Array | None = None,
    lengths: jax.Array | None = None,
) -> jax.Array:
    """See `hybrid_attention`."""
    B, T, N, _ = q_BTNH.shape
    geometry = Geometry(spec.block_size, T, k_BSKH.shape[1])
    rows = describe_rows(B, geometry, lengths, segment_ids)
    plan = make_plan(mode != 0, rows, spec, geometry, heads=N, block_mask=block_mask, full_block_mask=full_block_mask)
    return planned_attention(q_BTNH, k_BSKH, v_BSKH, plan, spec)
