"""Dual and routed attention on NVIDIA GPUs from compute capability 8.0, in Triton: both outputs from one sweep.

With block masks the sparse branch may see what the full one does not, so each has a sweep of its own. The backward
kernels are those of hybrid attention: a routed head has the gradients of its chosen branch.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp

from pallas_kernels.blocks import by_query_block
from pallas_kernels.call import AttentionCall
from pallas_kernels.gpu.attention import attend, backward
from pallas_kernels.gpu.plan import BlockPlan, make_plan
from pallas_kernels.schedule import AttentionSpec

type Array = jax.Array


def sweep(q: Array, k: Array, v: Array, chosen: BlockPlan, rest: BlockPlan, full_BKQ: Array, spec: AttentionSpec):
    """Output and log-sum-exp of the chosen branch (`out`, `lse`) and of the remaining one (`other`, `other_lse`).

    `full_BKQ` says where the full branch is the chosen one. Without lists one sweep gives both, and `rest` is the plan
    of the sparse branch; with lists it is that of the remaining one.
    """
    if chosen.keep_BNQJ is None and rest.keep_BNQJ is None:
        return attend(q, k, v, rest, spec, full_BKQ)
    other = attend(q, k, v, rest, spec)
    return attend(q, k, v, chosen, spec) | {"other": other["out"], "other_lse": other["lse"]}


@partial(jax.custom_vjp, nondiff_argnums=(5,))
def both(
    q: Array, k: Array, v: Array, full_plan: BlockPlan, sparse_plan: BlockPlan, spec: AttentionSpec
) -> tuple[Array, Array]:
    """(full, sparse) outputs `[B, T, N, H]`."""
    return _both_forward(q, k, v, full_plan, sparse_plan, spec)[0]


def _both_forward(q: Array, k: Array, v: Array, full_plan: BlockPlan, sparse_plan: BlockPlan, spec: AttentionSpec):
    everywhere = jnp.ones(sparse_plan.runs_BKQ3.shape[:3], jnp.bool_)
    pair = sweep(q, k, v, full_plan, sparse_plan, everywhere, spec)
    return (pair["out"], pair["other"]), (q, k, v, pair, full_plan, sparse_plan)


def _both_backward(spec: AttentionSpec, saved, d_outs: tuple[Array, Array]):
    q, k, v, pair, full_plan, sparse_plan = saved
    d_full = backward(q, k, v, pair["out"], pair["lse"], d_outs[0], full_plan, spec)
    d_sparse = backward(q, k, v, pair["other"], pair["other_lse"], d_outs[1], sparse_plan, spec)
    return *jax.tree.map(jnp.add, d_full, d_sparse), None, None


both.defvjp(_both_forward, _both_backward)


@partial(jax.custom_vjp, nondiff_argnums=(7,))
def routed(
    q: Array,
    k: Array,
    v: Array,
    z_BKQ: Array,
    sparse_BKQ: Array,
    chosen: BlockPlan,
    rest: BlockPlan,
    spec: AttentionSpec,
) -> Array:
    """The output of the branch that each query block is in; its gradient in z is <dO, full - sparse>."""
    return _routed_forward(q, k, v, z_BKQ, sparse_BKQ, chosen, rest, spec)[0]


def _routed_forward(
    q: Array,
    k: Array,
    v: Array,
    z_BKQ: Array,
    sparse_BKQ: Array,
    chosen: BlockPlan,
    rest: BlockPlan,
    spec: AttentionSpec,
):
    pair = sweep(q, k, v, chosen, rest, ~sparse_BKQ, spec)
    return pair["out"], (q, k, v, z_BKQ, sparse_BKQ, pair, chosen)


def _routed_backward(spec: AttentionSpec, saved, d_out: Array):
    q, k, v, z_BKQ, sparse_BKQ, pair, chosen = saved
    B, T, N, H = q.shape
    K, Q = z_BKQ.shape[1:]
    positions = jnp.arange(k.shape[1] - T, k.shape[1])
    exists_BT = positions[None] < chosen.limit_BJ[:, positions // spec.block_size]
    gain_BTN = jnp.sum(
        d_out.astype(jnp.float32) * (pair["out"].astype(jnp.float32) - pair["other"].astype(jnp.float32)), -1
    )
    gain_BTN = jnp.where(exists_BT[..., None], gain_BTN, 0)
    left = (k.shape[1] - T) % spec.block_size
    gain_BTN = jnp.pad(gain_BTN, ((0, 0), (left, Q * spec.block_size - left - T), (0, 0)))
    gain_BKQ = gain_BTN.reshape(B, Q, spec.block_size, K, N // K).sum((2, 4)).swapaxes(1, 2)
    dz_BKQ = jnp.where(sparse_BKQ, -gain_BKQ, gain_BKQ).astype(z_BKQ.dtype)
    grads = backward(q, k, v, pair["out"], pair["lse"], d_out, chosen, spec)
    return *grads, dz_BKQ, None, None, None


routed.defvjp(_routed_forward, _routed_backward)


def dual_attention_triton(call: AttentionCall) -> tuple[Array, Array]:
    """See `dual_attention`."""
    full_plan = make_plan(replace(call, block_mask=None), call.every_head(False))
    sparse_plan = make_plan(replace(call, full_block_mask=None), call.every_head(True))
    return both(call.q_BTNH, call.k_BSKH, call.v_BSKH, full_plan, sparse_plan, call.spec)


def routed_attention_triton(call: AttentionCall, z: Array, sparse: Array) -> Array:
    """See `routed_attention`."""
    rows, geometry = call.rows(), call.geometry
    chosen = make_plan(call, sparse)
    rest = make_plan(call, ~sparse if call.has_masks else jnp.ones_like(sparse))
    z_BKQ, sparse_BKQ = (by_query_block(x, rows, geometry) for x in (z, sparse))
    return routed(call.q_BTNH, call.k_BSKH, call.v_BSKH, z_BKQ, sparse_BKQ, chosen, rest, call.spec)
