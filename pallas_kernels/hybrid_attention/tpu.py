"""Hybrid attention on TPU: one launch serves full, streaming and block-mask heads, forward and backward."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp

from pallas_kernels.blocks import clear_padding
from pallas_kernels.schedule import AttentionSpec
from pallas_kernels.tpu.backward import attention_backward
from pallas_kernels.tpu.forward import attention_forward
from pallas_kernels.tpu.operands import Operands, launch_operands, unfold_output
from pallas_kernels.tpu.plan import Layout, Tables, list_blocks, make_tables


@partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def scheduled_attention(
    operands: Operands, tables: Tables, lists: jax.Array | None, layout: Layout, spec: AttentionSpec
) -> jax.Array:
    """Attention of every query block to its scheduled or listed key blocks, `[P, Q, R, H]`."""
    return attention_forward(*operands, tables, lists, "out", layout, spec)[0]


def _forward(operands: Operands, tables: Tables, lists: jax.Array | None, layout: Layout, spec: AttentionSpec):
    out, lse = attention_forward(*operands, tables, lists, "one", layout, spec)
    return out, (operands, tables, lists, out, lse)


def _backward(layout: Layout, spec: AttentionSpec, saved, d_out: jax.Array):
    operands, tables, lists, out, lse = saved
    return attention_backward(operands, out, lse, d_out, tables, lists, layout, spec), None, None


scheduled_attention.defvjp(_forward, _backward)


@partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def attention_and_lse(
    operands: Operands, tables: Tables, lists: jax.Array | None, layout: Layout, spec: AttentionSpec
) -> tuple[jax.Array, jax.Array]:
    """The same with its log-sum-exp `[P, Q, 1, R]`."""
    return _lse_forward(operands, tables, lists, layout, spec)[0]


def _lse_forward(operands: Operands, tables: Tables, lists: jax.Array | None, layout: Layout, spec: AttentionSpec):
    out, saved = _forward(operands, tables, lists, layout, spec)
    return (out, saved[-1]), saved


def _lse_backward(layout: Layout, spec: AttentionSpec, saved, cotangents: tuple[jax.Array, jax.Array]):
    operands, tables, lists, out, lse = saved
    d_out, d_lse = cotangents
    grads = attention_backward(operands, out, lse, d_out, tables, lists, layout, spec, d_lse_PQ1R=d_lse)
    return grads, None, None


attention_and_lse.defvjp(_lse_forward, _lse_backward)


def hybrid_attention_tpu(
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
    return_lse: bool = False,
) -> jax.Array | tuple[jax.Array, jax.Array]:
    """See `hybrid_attention`."""
    operands, rows, layout = launch_operands(q_BTNH, k_BSKH, v_BSKH, mode, spec, lengths, segment_ids)
    tables = make_tables(mode != 0, rows, layout)
    lists = list_blocks(mode != 0, rows, layout, spec, block_mask, full_block_mask)
    if not return_lse:
        out = scheduled_attention(operands, tables, lists, layout, spec)
        return clear_padding(unfold_output(out, layout), rows.valid_BS)
    out, lse = attention_and_lse(operands, tables, lists, layout, spec)
    lse_BTN1 = unfold_output(jnp.swapaxes(lse, 2, 3), layout)
    lse_BTN = clear_padding(lse_BTN1, rows.valid_BS, -jnp.inf)[..., 0]
    return clear_padding(unfold_output(out, layout), rows.valid_BS), lse_BTN
