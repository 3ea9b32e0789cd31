"""Hybrid attention on TPU: one launch serves full, streaming and block-mask heads."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp

from pallas_kernels.blockwise import fold
from pallas_kernels.layout import clear_padding
from pallas_kernels.schedule import AttentionSpec
from pallas_kernels.tpu.forward import attention_forward
from pallas_kernels.tpu.operands import Operands, launch_operands, unfold_output
from pallas_kernels.tpu.plan import Layout, list_blocks, make_tables


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
) -> jax.Array:
    """See `hybrid_attention`."""
    operands, rows, layout = launch_operands(q_BTNH, k_BSKH, v_BSKH, mode, spec, lengths, segment_ids)
    tables = make_tables(mode != 0, rows, layout)
    lists = list_blocks(mode != 0, rows, layout, spec, block_mask, full_block_mask)
    (out,) = attention_forward(*operands, tables, lists, "out", layout, spec)
    return clear_padding(unfold_output(out, layout), rows.valid_BS)
