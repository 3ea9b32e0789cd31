"""The Triton attention kernels as JAX functions."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from pallas_kernels.gpu.backward import dkv_kernel, dq_kernel
from pallas_kernels.gpu.forward import forward_kernel
from pallas_kernels.gpu.launch import compute_capability, launch
from pallas_kernels.gpu.plan import BlockPlan, Work, key_work, query_work
from pallas_kernels.gpu.tuning import Tile, choose_tile, padded
from pallas_kernels.partition import divided
from pallas_kernels.schedule import AttentionSpec

type Array = jax.Array

PLAN = BlockPlan._make(("BKQ3", "BKJ", "BJ", "BNQJ"))
"""Letters of the axes of each field, for `divided`."""


def _sizes(
    kernel: str, q_BTNH: Array, k_BSKH: Array, spec: AttentionSpec, work: Work
) -> tuple[Tile, dict[str, Any], dict[str, Any]]:
    """Tile of the kernel, the arguments that every kernel takes, and its constants."""
    T, N, H = q_BTNH.shape[1:]
    S, K = k_BSKH.shape[1:3]
    head_pad = padded(H)
    tile = choose_tile(kernel, compute_capability(), head_pad, q_BTNH.dtype.itemsize, spec.block_size)
    arguments = {
        "queries": T,
        "keys": S,
        "query_blocks": -(-S // spec.block_size) - (S - T) // spec.block_size,
        "key_blocks": -(-S // spec.block_size),
        "scale": spec.scale,
        "order_ptr": work.order,
    }
    if work.lists is not None:
        arguments |= {"blocks_ptr": work.lists.blocks, "count_ptr": work.lists.count}
    constants = {
        "N": N,
        "K": K,
        "HEAD": H,
        "HEAD_PAD": head_pad,
        "BLOCK": spec.block_size,
        "QUERIES": tile.queries,
        "KEYS": tile.keys,
        "WINDOW": spec.window or 0,
        "LISTED": work.lists is not None,
    }
    return tile, arguments, constants


def attend(
    q_BTNH: Array, k_BSKH: Array, v_BSKH: Array, plan: BlockPlan, spec: AttentionSpec, full_BKQ: Array | None = None
) -> dict[str, Array]:
    """Attention of every query to the blocks of its plan.

    With `full_BKQ` both branches come from one sweep: `plan` is that of the sparse branch, `full_BKQ` says where the
    full branch is the chosen one.

    Returns:
        `out` `[B, T, N, H]` and `lse` float32 `[B, N, T]` (natural logarithm; -inf where a query sees nothing); with
        `full_BKQ` these are the chosen branch, and `other` and `other_lse` the remaining one.
    """
    results = {"out": "BTNH", "lse": "BNT"}
    if full_BKQ is not None:
        results |= {"other": "BTNH", "other_lse": "BNT"}
    run = divided(partial(_attend, spec=spec), ("BTNH", "BSKH", "BSKH", PLAN, "BKQ"), results)
    return run(q_BTNH, k_BSKH, v_BSKH, plan, full_BKQ)


def _attend(
    q_BTNH: Array, k_BSKH: Array, v_BSKH: Array, plan: BlockPlan, full_BKQ: Array | None, *, spec: AttentionSpec
) -> dict[str, Array]:
    B, T, N, _ = q_BTNH.shape
    pair = full_BKQ is not None
    work = query_work(plan, N)
    tile, arguments, constants = _sizes("forward", q_BTNH, k_BSKH, spec, work)
    arguments |= {"q_ptr": q_BTNH, "k_ptr": k_BSKH, "v_ptr": v_BSKH, "runs_ptr": plan.runs_BKQ3}
    arguments |= {"limit_ptr": plan.limit_BJ}
    if pair:
        arguments["full_ptr"] = full_BKQ.astype(jnp.int32)
    outputs = {}
    for name in ("out", "other") if pair else ("out",):
        outputs[name] = jax.ShapeDtypeStruct(q_BTNH.shape, q_BTNH.dtype)
    for name in ("lse", "other_lse") if pair else ("lse",):
        outputs[name] = jax.ShapeDtypeStruct((B, N, T), jnp.float32)
    written = launch(
        forward_kernel,
        work.order.size * (spec.block_size // tile.queries),
        arguments,
        {f"{name}_ptr": output for name, output in outputs.items()},
        warps=tile.warps,
        stages=tile.stages,
        constants=constants | {"PAIR": pair},
    )
    return {name: written[f"{name}_ptr"] for name in outputs}


def backward(
    q_BTNH: Array,
    k_BSKH: Array,
    v_BSKH: Array,
    out_BTNH: Array,
    lse_BNT: Array,
    d_out_BTNH: Array,
    plan: BlockPlan,
    spec: AttentionSpec,
    d_lse_BNT: Array | None = None,
) -> tuple[Array, Array, Array]:
    """Gradients of q, k and v; skips what the forward pass with the same plan skipped."""
    inner_BTN = jnp.sum(d_out_BTNH.astype(jnp.float32) * out_BTNH.astype(jnp.float32), -1)
    inner_BNT = jnp.swapaxes(inner_BTN, 1, 2)
    if d_lse_BNT is not None:
        inner_BNT -= jnp.where(jnp.isfinite(lse_BNT), d_lse_BNT, 0.0)
    run = divided(
        partial(_backward, spec=spec),
        ("BTNH", "BSKH", "BSKH", "BTNH", "BNT", "BNT", PLAN),
        ("BTNH", "BSKH", "BSKH"),
    )
    return run(q_BTNH, k_BSKH, v_BSKH, d_out_BTNH, lse_BNT, inner_BNT, plan)


def _backward(
    q_BTNH: Array,
    k_BSKH: Array,
    v_BSKH: Array,
    d_out_BTNH: Array,
    lse_BNT: Array,
    inner_BNT: Array,
    plan: BlockPlan,
    *,
    spec: AttentionSpec,
) -> tuple[Array, Array, Array]:
    shared = {
        "q_ptr": q_BTNH,
        "k_ptr": k_BSKH,
        "v_ptr": v_BSKH,
        "d_out_ptr": d_out_BTNH,
        "lse_ptr": lse_BNT,
        "inner_ptr": inner_BNT,
        "limit_ptr": plan.limit_BJ,
    }

    work = query_work(plan, q_BTNH.shape[2])
    tile, arguments, constants = _sizes("dq", q_BTNH, k_BSKH, spec, work)
    dq = launch(
        dq_kernel,
        work.order.size * (spec.block_size // tile.queries),
        shared | arguments | {"runs_ptr": plan.runs_BKQ3},
        {"dq_ptr": jax.ShapeDtypeStruct(q_BTNH.shape, q_BTNH.dtype)},
        warps=tile.warps,
        stages=tile.stages,
        constants=constants,
    )
    work = key_work(plan)
    tile, arguments, constants = _sizes("dkv", q_BTNH, k_BSKH, spec, work)
    dkv = launch(
        dkv_kernel,
        work.order.size * (spec.block_size // tile.keys),
        shared | arguments | {"stop_ptr": plan.stop_BKJ},
        {f"{name}_ptr": jax.ShapeDtypeStruct(k_BSKH.shape, k_BSKH.dtype) for name in ("dk", "dv")},
        warps=tile.warps,
        stages=tile.stages,
        constants=constants,
    )
    return dq["dq_ptr"], dkv["dk_ptr"], dkv["dv_ptr"]
