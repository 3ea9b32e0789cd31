"""Hybrid attention in plain XLA, for every platform: full, sparse and listed blocks in one loop nest."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp

from pallas_kernels.blocks import clear_padding, unfold_queries
from pallas_kernels.call import AttentionCall
from pallas_kernels.partition import divided
from pallas_kernels.schedule import AttentionSpec, Schedule
from pallas_kernels.xla.backward import backward
from pallas_kernels.xla.forward import Extend, Folded, Softmax, Tiling, Visits, attend, fold, plan_visits


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def scheduled_attention(
    operands: Folded, visits: Visits, spec: AttentionSpec, tiling: Tiling
) -> tuple[jax.Array, jax.Array]:
    """Attention of every query block to the key blocks that it visits, `[B, K, Q, R, H]`, and its log-sum-exp."""
    return _forward(operands, visits, spec, tiling)[0]


def _forward(operands: Folded, visits: Visits, spec: AttentionSpec, tiling: Tiling):
    def run(operands: Folded, visits: Visits):
        def collect(tile: jax.Array, state: Softmax, plan: Schedule, extend: Extend):
            return state.output().astype(operands.q_BKQRH.dtype), state.lse(spec.scale)

        return attend(operands, visits, spec, tiling, collect)

    out, lse = divided(run, "BK", "BK")(operands, visits)
    return (out, lse), (operands, visits, out, lse)


def _backward(spec: AttentionSpec, tiling: Tiling, saved, cotangents: tuple[jax.Array, jax.Array]):
    operands, visits, out, lse = saved
    d_out, d_lse = cotangents
    return backward(operands, out, lse, d_out, visits, spec, tiling, d_lse), None


scheduled_attention.defvjp(_forward, _backward)


def hybrid_attention_xla(call: AttentionCall, sparse: jax.Array) -> tuple[jax.Array, jax.Array]:
    """See `hybrid_attention`."""
    operands, rows, geometry, tiling = fold(call)
    out, lse = scheduled_attention(operands, plan_visits(call, sparse, rows, geometry), call.spec, tiling)
    lse_BTN1 = unfold_queries(lse[..., None], geometry)
    return (
        clear_padding(unfold_queries(out, geometry), rows.valid_BS),
        clear_padding(lse_BTN1, rows.valid_BS, -jnp.inf)[..., 0],
    )
