"""Hybrid attention on NVIDIA GPUs from compute capability 8.0, in Triton."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp

from pallas_kernels.blocks import Geometry, describe_rows
from pallas_kernels.gpu.attention import attend, backward
from pallas_kernels.gpu.plan import Plan, make_plan
from pallas_kernels.schedule import AttentionSpec

type Array = jax.Array


@partial(jax.custom_vjp, nondiff_argnums=(4,))
def planned_attention(q: Array, k: Array, v: Array, plan: Plan, spec: AttentionSpec) -> tuple[Array, Array]:
    """Attention of every query to the blocks of the plan: output `[B, T, N, H]` and log-sum-exp `[B, N, T]`."""
    return _forward(q, k, v, plan, spec)[0]


def _forward(q: Array, k: Array, v: Array, plan: Plan, spec: AttentionSpec):
    written = attend(q, k, v, plan, spec)
    return (written["out"], written["lse"]), (q, k, v, written["out"], written["lse"], plan)


def _backward(spec: AttentionSpec, saved, cotangents: tuple[Array, Array]):
    q, k, v, out, lse_BNT, plan = saved
    d_out, d_lse_BNT = cotangents
    return *backward(q, k, v, out, lse_BNT, d_out, plan, spec, d_lse_BNT), None


planned_attention.defvjp(_forward, _backward)


def hybrid_attention_triton(
    q_BTNH: Array,
    k_BSKH: Array,
    v_BSKH: Array,
    mode: Array,
    spec: AttentionSpec,
    *,
    block_mask: Array | None = None,
    full_block_mask: Array | None = None,
    segment_ids: Array | None = None,
    lengths: Array | None = None,
    return_lse: bool = False,
) -> Array | tuple[Array, Array]:
    """See `hybrid_attention`."""
    B, T, N, _ = q_BTNH.shape
    geometry = Geometry(spec.block_size, T, k_BSKH.shape[1])
    rows = describe_rows(B, geometry, lengths, segment_ids)
    plan = make_plan(mode != 0, rows, spec, geometry, heads=N, block_mask=block_mask, full_block_mask=full_block_mask)
    out, lse_BNT = planned_attention(q_BTNH, k_BSKH, v_BSKH, plan, spec)
    return (out, jnp.swapaxes(lse_BNT, 1, 2)) if return_lse else out
