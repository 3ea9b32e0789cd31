"""Hybrid attention in plain XLA, for every platform: full and sparse heads in one loop nest."""

from __future__ import annotations

from functools import partial

import jax

from pallas_kernels.blockwise import Extend, Folded, Softmax, attend, fold, query_schedule
from pallas_kernels.blockwise_backward import backward
from pallas_kernels.layout import clear_padding, unfold_queries
from pallas_kernels.schedule import AttentionSpec, Schedule


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def scheduled_attention(operands: Folded, plan: Schedule, spec: AttentionSpec) -> jax.Array:
    """Attention of every query block to its scheduled key blocks, `[B, K, Q, R, H]`."""
    return _forward(operands, plan, spec)[0]


def _forward(operands: Folded, plan: Schedule, spec: AttentionSpec):
    def collect(index: jax.Array, state: Softmax, plan: Schedule, extend: Extend):
        return state.output().astype(operands.q_BKQRH.dtype), state.lse(spec.scale)

    out, lse = attend(operands, plan, spec, collect)
    return out, (operands, plan, out, lse)


def _backward(spec: AttentionSpec, saved, d_out: jax.Array):
    operands, plan, out, lse = saved
    return backward(operands, out, lse, d_out, plan, spec), None


scheduled_attention.defvjp(_forward, _backward)


def hybrid_attention_xla(
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
    if block_mask is not None or full_block_mask is not None:
        raise NotImplementedError("The xla implementation has no block masks yet. Use impl='reference'.")
    operands, rows, geometry = fold(q_BTNH, k_BSKH, v_BSKH, spec, lengths, segment_ids)
    plan = query_schedule(mode != 0, rows, spec, geometry)
    out = unfold_queries(scheduled_attention(operands, plan, spec), geometry)
    return clear_padding(out, rows.valid_BS)
