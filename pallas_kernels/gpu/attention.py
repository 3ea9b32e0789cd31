"""The Triton attention kernels as JAX functions."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import jax
import jax.numpy as jnp

from pallas_kernels.gpu.backward import dkv_kernel, dq_kernel
from pallas_kernels.gpu.forward import forward_kernel
from pallas_kernels.gpu.launch import compute_capability, launch
from pallas_kernels.gpu.plan import BlockPlan, Work, key_work, query_work
from pallas_kernels.gpu.tuning import choose_tile, padded
from pallas_kernels.partition import divided
from pallas_kernels.schedule import AttentionSpec

type Array = jax.Array

PLAN = BlockPlan._make(("BKQ3", "BKJ", "BJ", "BNQJ"))
"""Letters of the axes of each field, for `divided`."""


def _run(
    kernel: str,
    spec: AttentionSpec,
    work: Work,
    arguments: Mapping[str, Array],
    outputs: Mapping[str, jax.ShapeDtypeStruct],
    **constants: bool,
) -> dict[str, Array]:
    """Starts a kernel with a program for each tile of its work, and adds what every kernel takes to its arguments."""
    q_BTNH, k_BSKH = arguments["q_ptr"], arguments["k_ptr"]
    T, N, H = q_BTNH.shape[1:]
    S, K = k_BSKH.shape[1:3]
    head_pad = padded(H)
    tile = choose_tile(kernel, compute_capability(), head_pad, q_BTNH.dtype.itemsize, spec.block_size)
    common = {
        "queries": T,
        "keys": S,
        "query_blocks": -(-S // spec.block_size) - (S - T) // spec.block_size,
        "key_blocks": -(-S // spec.block_size),
        "scale": spec.scale,
        "order_ptr": work.order,
    }
    if work.lists is not None:
        common |= {"blocks_ptr": work.lists.blocks, "count_ptr": work.lists.count}
    program = {"forward": forward_kernel, "dq": dq_kernel, "dkv": dkv_kernel}[kernel]
    return launch(
        program,
        work.order.size * (spec.block_size // (tile.keys if kernel == "dkv" else tile.queries)),
        {**arguments, **common},
        outputs,
        warps=tile.warps,
        stages=tile.stages,
        constants={
            "N": N,
            "K": K,
            "HEAD": H,
            "HEAD_PAD": head_pad,
            "BLOCK": spec.block_size,
            "QUERIES": tile.queries,
            "KEYS": tile.keys,
            "WINDOW": spec.window or 0,
            "LISTED": work.lists is not None,
            **constants,
        },
    )


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
    arguments = {"q_ptr": q_BTNH, "k_ptr": k_BSKH, "v_ptr": v_BSKH, "runs_ptr": plan.runs_BKQ3}
    arguments |= {"limit_ptr": plan.limit_BJ}
    if pair:
        arguments["full_ptr"] = full_BKQ.astype(jnp.int32)
    outputs = {}
    for name in ("out", "other") if pair else ("out",):
        outputs[f"{name}_ptr"] = jax.ShapeDtypeStruct(q_BTNH.shape, q_BTNH.dtype)
    for name in ("lse", "other_lse") if pair else ("lse",):
        outputs[f"{name}_ptr"] = jax.ShapeDtypeStruct((B, N, T), jnp.float32)
    written = _run("forward", spec, query_work(plan, N), arguments, outputs, PAIR=pair)
    return {name.removesuffix("_ptr"): x for name, x in written.items()}


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
    dq_shape = {"dq_ptr": jax.ShapeDtypeStruct(q_BTNH.shape, q_BTNH.dtype)}
    dq = _run("dq", spec, query_work(plan, q_BTNH.shape[2]), shared | {"runs_ptr": plan.runs_BKQ3}, dq_shape)
    dkv_shapes = {f"{name}_ptr": jax.ShapeDtypeStruct(k_BSKH.shape, k_BSKH.dtype) for name in ("dk", "dv")}
    dkv = _run("dkv", spec, key_work(plan), shared | {"stop_ptr": plan.stop_BKJ}, dkv_shapes)
    return dq["dq_ptr"], dkv["dk_ptr"], dkv["dv_ptr"]
