"""Hybrid attention on NVIDIA GPUs from compute capability 8.0, in Triton."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp

from pallas_kernels.call import AttentionCall
from pallas_kernels.gpu.attention import attend, backward
from pallas_kernels.gpu.plan import BlockPlan, make_plan
from pallas_kernels.schedule import AttentionSpec

type Array = jax.Array


@partial(jax.custom_vjp, nondiff_argnums=(4,))
def planned_attention(q: Array, k: Array, v: Array, plan: BlockPlan, spec: AttentionSpec) -> tuple[Array, Array]:
    """Attention of every query to the blocks of the plan: output `[B, T, N, H]` and log-sum-exp `[B, N, T]`."""
    return _forward(q, k, v, plan, spec)[0]


def _forward(q: Array, k: Array, v: Array, plan: BlockPlan, spec: AttentionSpec):
    written = attend(q, k, v, plan, spec)
    return (written["out"], written["lse"]), (q, k, v, written["out"], written["lse"], plan)


def _backward(spec: AttentionSpec, saved, cotangents: tuple[Array, Array]):
    q, k, v, out, lse_BNT, plan = saved
    d_out, d_lse_BNT = cotangents
    return *backward(q, k, v, out, lse_BNT, d_out, plan, spec, d_lse_BNT), None


planned_attention.defvjp(_forward, _backward)


def hybrid_attention_triton(call: AttentionCall, sparse: Array) -> tuple[Array, Array]:
    """See `hybrid_attention`."""
    out, lse_BNT = planned_attention(call.q_BTNH, call.k_BSKH, call.v_BSKH, make_plan(call, sparse), call.spec)
    return out, jnp.swapaxes(lse_BNT, 1, 2)
