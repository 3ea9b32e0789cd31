"""Hybrid attention on Hopper GPUs: forward in Pallas Mosaic GPU, backward in Triton."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp

from pallas_kernels.blocks import Geometry, RowLayout, clear_padding
from pallas_kernels.call import AttentionCall
from pallas_kernels.gpu.attention import PLAN, backward
from pallas_kernels.gpu.hopper import BLOCK, hopper_attention, shared_bytes
from pallas_kernels.gpu.launch import compute_capability
from pallas_kernels.gpu.plan import BlockPlan, make_plan, query_work
from pallas_kernels.gpu.tuning import SHARED_MEMORY
from pallas_kernels.partition import divided
from pallas_kernels.schedule import AttentionSpec

type Array = jax.Array


def why_not(call: AttentionCall) -> str | None:
    """Why this kernel does not serve a call; None if it does."""
    q, spec = call.q_BTNH, call.spec
    head_dim, need = q.shape[3], shared_bytes(q.shape[3], q.dtype.itemsize)
    reasons = {
        f"operands are {q.dtype}; wanted bfloat16 or float16": q.dtype not in (jnp.bfloat16, jnp.float16),
        f"head_dim is {head_dim}; wanted a multiple of 64": head_dim % 64 != 0,
        f"head_dim {head_dim} needs {need} bytes of shared memory, of {SHARED_MEMORY[90]}": need > SHARED_MEMORY[90],
        f"block_size is {spec.block_size}; wanted {BLOCK}": spec.block_size != BLOCK,
        "a token window is set": spec.window is not None,
        "block masks are given": call.has_masks,
    }
    return next((reason for reason, applies in reasons.items() if applies), None)


def _whole_blocks(x: Array, rows: RowLayout, left: int, right: int) -> Array:
    return jnp.pad(clear_padding(x, rows.valid_BS), ((0, 0), (left, right), (0, 0), (0, 0)))


@partial(jax.custom_vjp, nondiff_argnums=(5,))
def planned_attention(
    q: Array, k: Array, v: Array, plan: BlockPlan, rows: RowLayout, spec: AttentionSpec
) -> tuple[Array, Array]:
    """Attention of every query to the blocks of the plan: output `[B, T, N, H]` and log-sum-exp `[B, N, T]`."""
    return _forward(q, k, v, plan, rows, spec)[0]


def _forward(q: Array, k: Array, v: Array, plan: BlockPlan, rows: RowLayout, spec: AttentionSpec):
    T = q.shape[1]
    geometry = Geometry(spec.block_size, T, k.shape[1])
    left, right = geometry.left, geometry.right

    def attend(q: Array, k: Array, v: Array, plan: BlockPlan) -> tuple[Array, Array]:
        return hopper_attention(q, k, v, plan.runs_BKQ3, query_work(plan, q.shape[2]).order, spec.scale)

    out, lse_BNT = divided(attend, ("BTNH", "BSKH", "BSKH", PLAN), ("BTNH", "BNT"))(
        _whole_blocks(q, rows, left, right), _whole_blocks(k, rows, 0, right), _whole_blocks(v, rows, 0, right), plan
    )
    out, lse_BNT = clear_padding(out[:, left : left + T], rows.valid_BS), lse_BNT[:, :, left : left + T]
    if rows.valid_BS is not None:
        lse_BNT = jnp.where(rows.valid_BS[:, None, -T:], lse_BNT, -jnp.inf)
    return (out, lse_BNT), (q, k, v, out, lse_BNT, plan)


def _backward(spec: AttentionSpec, saved, cotangents: tuple[Array, Array]):
    q, k, v, out, lse_BNT, plan = saved
    d_out, d_lse_BNT = cotangents
    return *backward(q, k, v, out, lse_BNT, d_out, plan, spec, d_lse_BNT), None, None


planned_attention.defvjp(_forward, _backward)


def hybrid_attention_mosaic_gpu(call: AttentionCall, sparse: Array) -> tuple[Array, Array]:
    """See `hybrid_attention`.

    Raises:
        NotImplementedError: not a Hopper GPU, or one of the cases that `why_not` names.
    """
    capability = compute_capability()
    reason = why_not(call)
    if capability != 90:
        reason = f"the GPU has compute capability {capability / 10}; wanted 9.0"
    if reason is not None:
        raise NotImplementedError(f"The mosaic_gpu implementation does not serve this case: {reason}. Use 'triton'.")
    operands = (call.q_BTNH, call.k_BSKH, call.v_BSKH)
    out, lse_BNT = planned_attention(*operands, make_plan(call, sparse), call.rows(), call.spec)
    return out, jnp.swapaxes(lse_BNT, 1, 2)
