"""The attention ops as functions of q, k and v, with all outputs and gradients of a call."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import jax
from attention_cases import CASES, Inputs, make_inputs

from pallas_kernels import dual_attention, hybrid_attention, routed_attention

NAMED = {case.name: case for case in CASES}
OPS = ("hybrid", "dual", "routed")


def call(op: str, impl: str, inputs: Inputs, q: jax.Array, k: jax.Array, v: jax.Array, **changes: object):
    """The op on these operands, with the modes and options of `inputs`."""
    options = inputs.options | {"impl": impl} | changes
    if op == "hybrid":
        return hybrid_attention(q, k, v, inputs.mode, **options)
    if op == "routed":
        return routed_attention(q, k, v, inputs.z, **options)
    return dual_attention(q, k, v, **options)


@cache
def outputs_and_gradients(op: str, impl: str, name: str) -> Callable:
    """Compiled: (q, k, v, cotangent) to (outputs, gradients of q, k and v), for one case of the shared table."""
    inputs = make_inputs(NAMED[name])

    @jax.jit
    def run(q, k, v, d_out):
        outs, pull = jax.vjp(lambda *qkv: jax.tree.leaves(call(op, impl, inputs, *qkv)), q, k, v)
        return outs, pull([d_out * weight for weight in (1.0, 0.5)[: len(outs)]])

    return run
