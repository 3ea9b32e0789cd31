"""Dual and routed attention in plain XLA: both outputs from one sweep over the keys.

Sink, local and diagonal blocks come first; the running softmax is then the sparse output, and going on over the middle
makes it the full one. So the pair costs one full attention (Elastic Attention computes every head twice). With block
masks the sparse branch may see what the full one does not, so each has a sweep of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from pallas_kernels.blocks import Geometry, RowLayout, by_query_block, clear_padding, unfold_queries
from pallas_kernels.call import AttentionCall
from pallas_kernels.partition import divided
from pallas_kernels.schedule import AttentionSpec, Schedule
from pallas_kernels.xla.backward import backward
from pallas_kernels.xla.forward import (
    Extend,
    Folded,
    Softmax,
    Tiling,
    Visits,
    attend,
    fold,
    over_rows,
    plan_visits,
    query_tiles,
)


class Branch(NamedTuple):
    """Output `[..., R, H]` and log-sum-exp `[..., R]`."""

    out: jax.Array
    lse: jax.Array


class Both(NamedTuple):
    """What the full and what the sparse branch visits."""

    full: Visits
    sparse: Visits


def sweep[O](
    operands: Folded,
    visits: Both,
    spec: AttentionSpec,
    tiling: Tiling,
    combine: Callable[[jax.Array, Branch, Branch], O],
) -> O:
    """`combine(tile, full, sparse)` of every query tile, the branches in float32."""

    def branch(state: Softmax) -> Branch:
        return Branch(state.output(), state.lse(spec.scale))

    if visits.sparse.ends_BKQGJ is None:

        def collect(tile: jax.Array, near: Softmax, plan: Schedule, extend: Extend) -> O:
            return combine(tile, branch(extend(near, *plan.middle)), branch(near))

        return attend(operands, visits.sparse, spec, tiling, collect)

    full = query_tiles(attend(operands, visits.full, spec, tiling, lambda _, state, *__: branch(state)), tiling)

    def collect_sparse(tile: jax.Array, state: Softmax, plan: Schedule, extend: Extend) -> O:
        return combine(tile, jax.tree.map(lambda x: x[tile].reshape(-1, *x.shape[3:]), full), branch(state))

    return attend(operands, visits.sparse, spec, tiling, collect_sparse)


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def both(operands: Folded, visits: Both, spec: AttentionSpec, tiling: Tiling) -> tuple[jax.Array, jax.Array]:
    """(full, sparse) outputs in the type of q."""
    return _both_forward(operands, visits, spec, tiling)[0]


def _both_forward(operands: Folded, visits: Both, spec: AttentionSpec, tiling: Tiling):
    def combine(tile: jax.Array, *branches: Branch):
        return tuple(Branch(x.out.astype(operands.q_BKQRH.dtype), x.lse) for x in branches)

    def run(operands: Folded, visits: Both):
        return sweep(operands, visits, spec, tiling, combine)

    full, sparse = divided(run, "BK", "BK")(operands, visits)
    return (full.out, sparse.out), (operands, visits, full, sparse)


def _both_backward(spec: AttentionSpec, tiling: Tiling, saved, d_outs: tuple[jax.Array, jax.Array]):
    operands, visits, full, sparse = saved
    d_full = backward(operands, full.out, full.lse, d_outs[0], visits.full, spec, tiling)
    d_sparse = backward(operands, sparse.out, sparse.lse, d_outs[1], visits.sparse, spec, tiling)
    return jax.tree.map(jnp.add, d_full, d_sparse), None


both.defvjp(_both_forward, _both_backward)


@partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def routed(
    operands: Folded, z_BKQ: jax.Array, sparse_BKQ: jax.Array, visits: Both, spec: AttentionSpec, tiling: Tiling
) -> jax.Array:
    """The output of the branch that each query block is in; its gradient in z is <dO, full - sparse>."""
    return _routed_forward(operands, z_BKQ, sparse_BKQ, visits, spec, tiling)[0]


def _routed_forward(
    operands: Folded, z_BKQ: jax.Array, sparse_BKQ: jax.Array, visits: Both, spec: AttentionSpec, tiling: Tiling
):
    dtype = operands.q_BKQRH.dtype

    def run(operands: Folded, sparse_BKQ: jax.Array, visits: Both):
        sparse_tiles = query_tiles(sparse_BKQ, tiling)

        def combine(tile: jax.Array, full: Branch, sparse: Branch):
            is_sparse = over_rows(sparse_tiles[tile], full.out.shape[0])
            out = jnp.where(is_sparse[:, None], sparse.out, full.out).astype(dtype)
            return Branch(out, jnp.where(is_sparse, sparse.lse, full.lse)), (full.out - sparse.out).astype(dtype)

        return sweep(operands, visits, spec, tiling, combine)

    chosen, difference = divided(run, "BK", "BK")(operands, sparse_BKQ, visits)
    return chosen.out, (operands, z_BKQ, sparse_BKQ, visits, chosen, difference)


def _routed_backward(spec: AttentionSpec, tiling: Tiling, saved, d_out: jax.Array):
    operands, z_BKQ, sparse_BKQ, visits, chosen, difference = saved
    dz_BKQ = jnp.einsum("bkqrh,bkqrh->bkq", d_out, difference, preferred_element_type=jnp.float32)

    def choose(full: jax.Array, sparse: jax.Array) -> jax.Array:
        return jnp.where(sparse_BKQ.reshape(*sparse_BKQ.shape, *(1,) * (full.ndim - 3)), sparse, full)

    chosen_visits = jax.tree.map(choose, *visits)
    d_operands = backward(operands, chosen.out, chosen.lse, d_out, chosen_visits, spec, tiling)
    return d_operands, dz_BKQ.astype(z_BKQ.dtype), None, None


routed.defvjp(_routed_forward, _routed_backward)


def visits_of_both(call: AttentionCall, rows: RowLayout, geometry: Geometry) -> Both:
    full, sparse = (plan_visits(call, call.every_head(sparse), rows, geometry) for sparse in (False, True))
    return Both(full, sparse)


def dual_attention_xla(call: AttentionCall) -> tuple[jax.Array, jax.Array]:
    """See `dual_attention`."""
    operands, rows, geometry, tiling = fold(call)
    outs = both(operands, visits_of_both(call, rows, geometry), call.spec, tiling)
    full, sparse = (clear_padding(unfold_queries(x, geometry), rows.valid_BS) for x in outs)
    return full, sparse


def routed_attention_xla(call: AttentionCall, z: jax.Array, sparse: jax.Array) -> jax.Array:
    """See `routed_attention`."""
    operands, rows, geometry, tiling = fold(call)
    z_BKQ, sparse_BKQ = (by_query_block(x, rows, geometry) for x in (z, sparse))
    out = routed(operands, z_BKQ, sparse_BKQ, visits_of_both(call, rows, geometry), call.spec, tiling)
    return clear_padding(unfold_queries(out, geometry), rows.valid_BS)
