"""Decode attention in plain XLA: a list of tiles of groups that some head may see, without dequantising the cache.

Heads differ in how many groups they see, so the work of all (row, KV head) pairs is cut into tiles of a few groups and
the tiles are taken from one list, many at a time: no core waits for the longest head, and a sparse head costs what it
reads. Every tile leaves a partial softmax; one pass at the end joins those of each head with its exact tokens.

The products run on the codes: with k = c * s + z by channel, q.k = (q * s).c + q.z, and with v = c * s + z by token,
sum of p * v = sum of (p * s) * c + sum of p * z.

Letters beyond the usual: P (row, KV head) pairs, R query rows of a pair, I tiles taken at once, W groups of a tile.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from pallas_kernels.decode_attention.plan import group_schedule
from pallas_kernels.decode_attention.view import CacheView, Pages, fold_query_heads, hole_mask
from pallas_kernels.kv_quant.xla import unpack_xla
from pallas_kernels.schedule import AttentionSpec, Schedule, query_positions, visible_tokens
from pallas_kernels.xla.forward import MASKED, NOTHING_SEEN, exp2

TILE_GROUPS = 4
"""Groups of a tile: few partial results to join, at the price of some groups unpacked past the end of a run."""
CODES_AT_ONCE = 1 << 18
"""Codes unpacked at a time, to float32: larger working sets leave the second-level caches of CPU cores."""


class Partial(NamedTuple):
    """Softmax over some tokens, to be joined with others: unnormalised output, largest score (base 2), sum."""

    acc_IRH: jax.Array
    top_IR: jax.Array
    sum_IR: jax.Array


def decode_attention_xla(
    q_BTNH: jax.Array, view: CacheView, position_B: jax.Array, sparse_BK: jax.Array, spec: AttentionSpec
) -> jax.Array:
    """See `decode_attention`."""
    B, T, N, H = q_BTNH.shape
    K, J = view.table_BKJ.shape[1:]
    R, G = N // K * T, view.pages.group
    # Scores in base 2, see `exp2`.
    q_PRH = fold_query_heads(q_BTNH.astype(jnp.float32), K).reshape(B * K, R, H) * (spec.scale * math.log2(math.e))
    q_pos_PR = jnp.tile(query_positions(position_B, T), N // K).repeat(K, 0)
    sparse_P, table_PJ = sparse_BK.ravel(), view.table_BKJ.reshape(B * K, J)
    plan = group_schedule(sparse_P, position_B.repeat(K), view.quantized_B.repeat(K), G, spec)
    tiles_P = -(-plan.steps // TILE_GROUPS)
    end_P = jnp.cumsum(tiles_P)
    most = -(-J // TILE_GROUPS)
    at_once = min(max(CODES_AT_ONCE // (TILE_GROUPS * G * H), 1), B * K * most)

    def take(index: jax.Array, done: Partial) -> Partial:
        item_I = index * at_once + jnp.arange(at_once)
        pair_I = jnp.minimum((item_I[:, None] >= end_P[None]).sum(-1), B * K - 1)
        plan_I1 = jax.tree.map(lambda x: x[pair_I, None], Schedule(*jnp.broadcast_arrays(*plan)))
        step_IW = (item_I - (end_P - tiles_P)[pair_I])[:, None] * TILE_GROUPS + jnp.arange(TILE_GROUPS)[None]
        group_IW = plan_I1.block(jnp.clip(step_IW, 0, jnp.maximum(plan_I1.steps - 1, 0)))
        page_IW = jnp.take_along_axis(table_PJ[pair_I], group_IW, 1)
        pages = jax.tree.map(lambda x: x[page_IW], view.pages)
        pos_IWG = group_IW[:, :, None] * G + jnp.arange(G)[None, None]
        stored_IWG = (step_IW < plan_I1.steps)[:, :, None] & ~hole_mask(pages.holes)
        visible = visible_tokens(
            sparse_P[pair_I, None, None, None], q_pos_PR[pair_I, :, None, None], pos_IWG[:, None], spec
        )
        part = visit_groups(q_PRH[pair_I], pages, visible & stored_IWG[:, None])
        return jax.tree.map(lambda x, new: lax.dynamic_update_slice_in_dim(x, new, index * at_once, 0), done, part)

    rows = -(-B * K * most // at_once) * at_once
    done = Partial(jnp.zeros((rows, R, H)), jnp.zeros((rows, R)), jnp.zeros((rows, R)))
    done = lax.fori_loop(0, -(-end_P[-1] // at_once), take, done)
    exact_pos_P1E = view.exact_pos_BKE.reshape(B * K, 1, -1)
    visible = visible_tokens(sparse_P[:, None, None], q_pos_PR[:, :, None], exact_pos_P1E, spec) & (exact_pos_P1E >= 0)
    exact_k, exact_v = (x.reshape(B * K, -1, H) for x in (view.exact_k_BKEH, view.exact_v_BKEH))
    exact = visit_exact(q_PRH, exact_k, exact_v, visible)
    tile_M = jnp.arange(most)[None]
    out = join(done, (end_P - tiles_P)[:, None] + tile_M, tile_M < tiles_P[:, None], exact)
    return out.reshape(B, K, N // K, T, H).transpose(0, 3, 1, 2, 4).reshape(B, T, N, H).astype(q_BTNH.dtype)


def visit_groups(q_IRH: jax.Array, pages: Pages, visible_IRWG: jax.Array) -> Partial:
    """Attention over the groups of each tile; `pages` holds `[I, W, ...]`."""
    k_scale, k_zero, v_scale, v_zero = (
        x.astype(jnp.float32) for x in (pages.k_scale, pages.k_zero, pages.v_scale, pages.v_zero)
    )
    k_IWGH, v_IWGH = (unpack_xla(x, pages.bits).astype(jnp.float32) for x in (pages.k_codes, pages.v_codes))
    scores = jnp.einsum("iwrh,iwgh->iwrg", q_IRH[:, None] * k_scale[:, :, None], k_IWGH).swapaxes(1, 2)
    scores += jnp.einsum("irh,iwh->irw", q_IRH, k_zero, precision="highest")[..., None]
    if pages.k_norm is not None:
        scores *= pages.k_norm.astype(jnp.float32)[:, None]
    top_IR, weights = weigh(scores, visible_IRWG, axes=(2, 3))
    # Value groups: C channels share the scale of a token.
    tiles, W, G, C = v_scale.shape
    flat = weights.reshape(*weights.shape[:2], W * G)
    scale, zero = (x.reshape(tiles, W * G, C) for x in (v_scale, v_zero))
    values = v_IWGH.reshape(tiles, W * G, C, -1)
    parts = [jnp.einsum("irg,igh->irh", flat * scale[:, None, :, c], values[:, :, c]) for c in range(C)]
    acc = jnp.stack(parts, 2) + jnp.einsum("irg,igc->irc", flat, zero)[..., None]
    return Partial(acc.reshape(*top_IR.shape, -1), top_IR, flat.sum(-1))


def visit_exact(q_PRH: jax.Array, k_PEH: jax.Array, v_PEH: jax.Array, visible_PRE: jax.Array) -> Partial:
    """Attention over the exact tokens of each pair."""
    scores = jnp.einsum("prh,peh->pre", q_PRH, k_PEH.astype(jnp.float32))
    top_PR, weights = weigh(scores, visible_PRE, axes=(2,))
    return Partial(jnp.einsum("pre,peh->prh", weights, v_PEH.astype(jnp.float32)), top_PR, weights.sum(-1))


def weigh(scores: jax.Array, visible: jax.Array, axes: tuple[int, ...]) -> tuple[jax.Array, jax.Array]:
    """Largest visible score, and weights 2 ** (score - largest), 0 where nothing is visible."""
    scores = jnp.where(visible, scores, MASKED)
    top = jnp.maximum(scores.max(axes), NOTHING_SEEN)
    return top, jnp.where(visible, exp2(scores - jnp.expand_dims(top, axes)), 0.0)


def join(done: Partial, place_PM: jax.Array, used_PM: jax.Array, exact: Partial) -> jax.Array:
    """Output `[P, R, H]` of the partial results of each pair: those at its places, where used, and its exact one."""
    # Unused places show other pairs' results, of which nothing, NaN included, may come through.
    used_PM1 = used_PM[:, :, None]
    acc = jnp.where(used_PM1[..., None], done.acc_IRH[place_PM], 0.0)
    top = jnp.where(used_PM1, done.top_IR[place_PM], MASKED)
    total = jnp.where(used_PM1, done.sum_IR[place_PM], 0.0)
    most = jnp.maximum(top.max(1), exact.top_IR)
    share = exp2(top - most[:, None])
    exact_share = exp2(exact.top_IR - most)
    total = (total * share).sum(1) + exact.sum_IR * exact_share
    acc = (acc * share[..., None]).sum(1) + exact.acc_IRH * exact_share[..., None]
    return acc / jnp.maximum(total, 1e-30)[..., None]
