"""Hybrid attention in plain XLA, for every platform: full and sparse heads in one loop nest."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

from pallas_kernels.blockwise import Folded, Softmax, backward, fold, query_schedule, sweep
from pallas_kernels.layout import clear_padding, unfold_queries
from pallas_kernels.schedule import AttentionSpec, Schedule


def attend(operands: Folded, plan: Schedule, spec: AttentionSpec) -> tuple[jax.Array, jax.Array]:
    """Output `[B, K, I, R, H]` and log-sum-exp `[B, K, I, R]` of all query blocks."""
    B, K, I, R, H = operands.q_BKIRH.shape

    def query_block(item):
        q_RH, plan, head = item
        state = sweep(Softmax.empty(R, H), q_RH, operands, head, plan, spec)
        return state.output().astype(q_RH.dtype), state.lse(spec.scale)

    flat_plan = Schedule(*(x.reshape(-1) for x in plan))
    out, lse = lax.map(query_block, (operands.q_BKIRH.reshape(-1, R, H), flat_plan, jnp.arange(B * K * I) // I))
    return out.reshape(operands.q_BKIRH.shape), lse.reshape(B, K, I, R)


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def scheduled_attention(operands: Folded, plan: Schedule, spec: AttentionSpec) -> jax.Array:
    """Attention of every query block to its scheduled key blocks, `[B, K, I, R, H]`."""
    return attend(operands, plan, spec)[0]


def _forward(operands, plan, spec):
    out, lse = attend(operands, plan, spec)
    return out, (operands, plan, out, lse)


def _backward(spec, saved, d_out):
    operands, plan, out, lse = saved
    return Folded(*backward(operands, out, lse, d_out, plan, spec)), None


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
