"""Backward pass of blockwise attention in plain XLA; it skips what the forward pass skips.

Query tiles are taken one after the other, in one scan. The gradient of a query tile's q is complete when its tile has
been through all of its key tiles; those of k and v are sums over query tiles, so two arrays of the size of all keys are
carried along and every key tile is added to at its place.

Tiles are transposed, keys by rows: then each of the five products has its contraction where XLA's CPU matmul wants it.

Letters as in `forward`; P = B * K heads, a tile has S keys and R query rows.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from pallas_kernels.partition import divided
from pallas_kernels.schedule import AttentionSpec
from pallas_kernels.xla.forward import (
    Bounds,
    Folded,
    Tiling,
    Visits,
    dot,
    exp2,
    gather_keys,
    key_tile,
    list_tile,
    list_tiles,
    over_rows,
    query_tiles,
    row_positions,
    tile_mask,
    traverse_schedule,
)


class Queries(NamedTuple):
    """What a query tile brings to every key tile that it visits."""

    q_RH: jax.Array
    d_out_RH: jax.Array
    lse_R: jax.Array
    inner_R: jax.Array
    """Row sums of dO * O, less the cotangent of the log-sum-exp."""


class Keys(NamedTuple):
    """Keys and values of all heads; keys also transposed, once instead of for each tile."""

    k_PSH: jax.Array
    k_PHS: jax.Array
    v_PSH: jax.Array


class KeySums(NamedTuple):
    """Gradients of keys (before the scale) and values, summed over the query tiles so far; float32."""

    dk_PSH: jax.Array
    dv_PSH: jax.Array

    def add(self, head: jax.Array, at: jax.Array, dk_SH: jax.Array, dv_SH: jax.Array) -> KeySums:
        """With more added to the keys of one head from position `at` on."""

        def add(x_PSH: jax.Array, update_SH: jax.Array) -> jax.Array:
            row = lax.dynamic_slice(x_PSH, (head, at, 0), (1, *update_SH.shape))
            return lax.dynamic_update_slice(x_PSH, row + update_SH[None], (head, at, 0))

        return KeySums(add(self.dk_PSH, dk_SH), add(self.dv_PSH, dv_SH))


def backward(
    operands: Folded,
    out_BKQRH: jax.Array,
    lse_BKQR: jax.Array,
    d_out_BKQRH: jax.Array,
    visits: Visits,
    spec: AttentionSpec,
    tiling: Tiling,
    d_lse_BKQR: jax.Array | None = None,
) -> Folded:
    """Gradients of q, k and v for the attention over `visits`; weights are recomputed from the log-sum-exp.

    A cotangent of the log-sum-exp joins the row sums of dO * O, since its slope in a score is the weight. Query blocks
    without any cotangent, such as those of a closed gate's branch, visit nothing.
    """
    inner_BKQR = jnp.sum(d_out_BKQRH.astype(jnp.float32) * out_BKQRH.astype(jnp.float32), -1)
    needed_BKQ = (d_out_BKQRH != 0).any((-2, -1))
    if d_lse_BKQR is not None:
        inner_BKQR -= jnp.where(jnp.isneginf(lse_BKQR), 0.0, d_lse_BKQR)
        needed_BKQ |= (d_lse_BKQR != 0).any(-1)
    visits = visits.only(needed_BKQ)
    run = divided(partial(_backward, spec=spec, tiling=tiling), "BK", "BK")
    return run(operands, lse_BKQR, d_out_BKQRH, inner_BKQR, visits)


def _backward(
    operands: Folded,
    lse_BKQR: jax.Array,
    d_out_BKQRH: jax.Array,
    inner_BKQR: jax.Array,
    visits: Visits,
    *,
    spec: AttentionSpec,
    tiling: Tiling,
) -> Folded:
    B, K, Q, R, H = operands.q_BKQRH.shape
    k_PSH, v_PSH = (x.reshape(B * K, -1, H) for x in operands[1:])
    keys = Keys(k_PSH, jnp.swapaxes(k_PSH, 1, 2), v_PSH)
    queries = Queries(operands.q_BKQRH, d_out_BKQRH, lse_BKQR, inner_BKQR)

    def visit_tile(sums: KeySums, item: tuple[jax.Array, Queries, Visits]) -> tuple[KeySums, jax.Array]:
        index, queries, visits = item
        queries = jax.tree.map(lambda x: x.reshape(tiling.query * R, *x.shape[2:]), queries)
        sums, dq_HR = visit_keys(sums, keys, queries, visits, index * tiling.query // Q, spec, tiling)
        return sums, (dq_HR.T * spec.scale).astype(operands.q_BKQRH.dtype)

    zeros = jnp.zeros(k_PSH.shape)
    items = (jnp.arange(B * K * Q // tiling.query), *query_tiles((queries, visits), tiling))
    (dk, dv), dq = lax.scan(visit_tile, KeySums(zeros, zeros), items)
    dtype = operands.k_BKSH.dtype
    return Folded(
        dq.reshape(B, K, Q, R, H),
        (dk * spec.scale).astype(dtype).reshape(operands.k_BKSH.shape),
        dv.astype(dtype).reshape(operands.k_BKSH.shape),
    )


def visit_keys(
    sums: KeySums, keys: Keys, queries: Queries, visits: Visits, head: jax.Array, spec: AttentionSpec, tiling: Tiling
) -> tuple[KeySums, jax.Array]:
    """Takes one query tile through its key tiles: the sums with its share, and its dq transposed, before the scale."""
    rows, H = queries.q_RH.shape
    plan, ends_rGJ = visits
    q_pos = row_positions(plan.diag, rows, spec)

    def visit(carry: tuple[jax.Array, KeySums], start: jax.Array, blocks: int, bounds: Bounds | None):
        dq_HR, sums = carry
        at, width = start * spec.block_size, blocks * spec.block_size
        k_SH, v_SH = (key_tile(x, head, start, blocks, spec) for x in (keys.k_PSH, keys.v_PSH))
        k_HS = lax.dynamic_slice(keys.k_PHS, (head, 0, at), (1, H, width))[0]
        mask_SR = None
        if bounds is not None:
            k_pos = at + jnp.arange(width)
            lower, upper = (over_rows(x, rows)[None] for x in bounds)
            mask_SR = tile_mask(q_pos[None], k_pos[:, None], (lower, upper), spec)
        more_dq, dk_SH, dv_SH = tile_gradients(queries, k_SH, k_HS, v_SH, mask_SR, spec)
        return dq_HR + more_dq, sums.add(head, at, dk_SH, dv_SH)

    dq_HR = jnp.zeros((H, rows))
    if ends_rGJ is not None:
        # Every query head has a list of its own, so each (query block, query head) goes alone.
        pairs = rows // spec.block_size
        split = jax.tree.map(lambda x: x.reshape(pairs, spec.block_size, *x.shape[1:]), queries)
        items = (split, over_rows(plan.diag, pairs), ends_rGJ.reshape(pairs, -1))
        sums, dq_GHR = lax.scan(
            lambda sums, item: visit_listed_keys(sums, keys, *item, head, spec, tiling), sums, items
        )
        dq_HR = dq_GHR.swapaxes(0, 1).reshape(H, rows)
    dq_HR, sums = traverse_schedule(plan, tiling, spec, visit, (dq_HR, sums))
    return sums, dq_HR


def visit_listed_keys(
    sums: KeySums,
    keys: Keys,
    queries: Queries,
    diag: jax.Array,
    ends_J: jax.Array,
    head: jax.Array,
    spec: AttentionSpec,
    tiling: Tiling,
) -> tuple[KeySums, jax.Array]:
    """The same for one query block of one query head and the key blocks of its list."""
    q_pos = row_positions(diag[None], spec.block_size, spec)

    def visit(tile: jax.Array, carry: tuple[jax.Array, KeySums]) -> tuple[jax.Array, KeySums]:
        dq_HR, sums = carry
        blocks, k_pos = list_tile(ends_J, tile, tiling, spec)
        k_SH, v_SH = (gather_keys(x, head, blocks, spec) for x in (keys.k_PSH, keys.v_PSH))
        mask_SR = tile_mask(q_pos[None], k_pos[:, None], None, spec)
        more_dq, dk_SH, dv_SH = tile_gradients(queries, k_SH, k_SH.T, v_SH, mask_SR, spec)
        for i, block in enumerate(blocks):
            part = slice(i * spec.block_size, (i + 1) * spec.block_size)
            sums = sums.add(head, block * spec.block_size, dk_SH[part], dv_SH[part])
        return dq_HR + more_dq, sums

    carry = (jnp.zeros((queries.q_RH.shape[1], spec.block_size)), sums)
    dq_HR, sums = lax.fori_loop(0, list_tiles(ends_J, tiling), visit, carry)
    return sums, dq_HR


def tile_gradients(
    queries: Queries, k_SH: jax.Array, k_HS: jax.Array, v_SH: jax.Array, mask_SR: jax.Array | None, spec: AttentionSpec
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """What one tile adds to dq (transposed), dk and dv: five products, see FlashAttention (arXiv 2205.14135), B.2."""
    q_RH, d_out_RH, lse_R, inner_R = queries
    log2_e = float(np.log2(np.e))
    scores_SR = dot(k_SH, q_RH, (1, 1))
    weights_SR = exp2(scores_SR * (spec.scale * log2_e) - lse_R[None] * log2_e)
    if mask_SR is not None:
        weights_SR = jnp.where(mask_SR, weights_SR, 0.0)
    # The barrier keeps XLA from computing the weights twice, once for each product that they go into.
    weights_SR = lax.optimization_barrier(weights_SR)
    d_scores_SR = (weights_SR * (dot(v_SH, d_out_RH, (1, 1)) - inner_R[None])).astype(q_RH.dtype)
    return (
        dot(k_HS, d_scores_SR, (1, 0)),
        dot(d_scores_SR, q_RH, (1, 0)),
        dot(weights_SR.astype(q_RH.dtype), d_out_RH, (1, 0)),
    )
