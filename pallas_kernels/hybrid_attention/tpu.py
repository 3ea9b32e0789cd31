"""Hybrid attention on TPU: one launch serves full, streaming and block-mask heads, forward and backward."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp

from pallas_kernels.blocks import clear_padding
from pallas_kernels.call import AttentionCall
from pallas_kernels.schedule import AttentionSpec
from pallas_kernels.tpu.backward import attention_backward
from pallas_kernels.tpu.forward import attention_forward
from pallas_kernels.tpu.operands import Operands, launch_operands, unfold_output
from pallas_kernels.tpu.plan import LaunchSizes, Tables, list_blocks, make_tables


@partial(jax.custom_vjp, nondiff_argnums=(3, 4, 5))
def scheduled_attention(
    operands: Operands,
    tables: Tables,
    lists: jax.Array | None,
    sizes: LaunchSizes,
    spec: AttentionSpec,
    return_lse: bool,
) -> tuple[jax.Array, jax.Array | None]:
    """Attention of every query block to its scheduled or listed key blocks, `[P, Q, R, H]`.

    With it comes its log-sum-exp `[P, Q, 1, R]`, or None: a launch that is not differentiated need not write it.
    """
    outputs = "one" if return_lse else "out"
    out, *lse = attention_forward(*operands, tables, lists, outputs, sizes, spec)
    return out, lse[0] if return_lse else None


def _forward(
    operands: Operands,
    tables: Tables,
    lists: jax.Array | None,
    sizes: LaunchSizes,
    spec: AttentionSpec,
    return_lse: bool,
):
    out, lse = attention_forward(*operands, tables, lists, "one", sizes, spec)
    return (out, lse if return_lse else None), (operands, tables, lists, out, lse)


def _backward(sizes: LaunchSizes, spec: AttentionSpec, return_lse: bool, saved, cotangents):
    operands, tables, lists, out, lse = saved
    d_out, d_lse = cotangents
    return attention_backward(operands, out, lse, d_out, tables, lists, sizes, spec, d_lse_PQ1R=d_lse), None, None


scheduled_attention.defvjp(_forward, _backward)


def hybrid_attention_tpu(call: AttentionCall, sparse: jax.Array) -> tuple[jax.Array, jax.Array | None]:
    """See `hybrid_attention`."""
    operands, rows, sizes = launch_operands(call, sparse)
    lists = list_blocks(sparse, rows, sizes, call.spec, call.block_mask, call.full_block_mask)
    tables = make_tables(sparse, rows, sizes)
    out, lse = scheduled_attention(operands, tables, lists, sizes, call.spec, call.return_lse)
    out = clear_padding(unfold_output(out, sizes), rows.valid_BS)
    if lse is None:
        return out, None
    lse_BTN1 = unfold_output(jnp.swapaxes(lse, 2, 3), sizes)
    return out, clear_padding(lse_BTN1, rows.valid_BS, -jnp.inf)[..., 0]
