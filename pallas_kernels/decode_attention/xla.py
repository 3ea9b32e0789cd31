"""Decode attention in plain XLA: a loop over the groups that a head may see, without dequantising the cache.

The products run on the codes: with k = c * s + z by channel, q.k = (q * s).c + q.z, and with v = c * s + z by token,
sum of p * v = sum of (p * s) * c + sum of p * z.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax

from pallas_kernels.blockwise import MASKED, Softmax
from pallas_kernels.decode_attention.view import CacheView, Pages, hole_mask, query_positions
from pallas_kernels.kv_quant.xla import unpack_xla
from pallas_kernels.schedule import AttentionSpec, Schedule, block_schedule, visible_tokens

TILE_GROUPS = 4
"""Groups visited at once: enough work for a matrix product, little waste at the end of a run."""


def decode_attention_xla(
    q_BTNH: jax.Array, view: CacheView, position_B: jax.Array, sparse_BK: jax.Array, spec: AttentionSpec
) -> jax.Array:
    """See `decode_attention`."""
    B, T, N, H = q_BTNH.shape
    K = view.table_BKJ.shape[1]
    rows = N // K * T
    q_PRH = q_BTNH.astype(jnp.float32).reshape(B, T, K, N // K, H).transpose(0, 2, 3, 1, 4) * spec.scale
    q_pos_PR = jnp.tile(query_positions(position_B, T), N // K)[:, None].repeat(K, 1)

    def one_head(item):
        q_RH, q_pos_R, sparse, table_J, quantized, exact_k_EH, exact_v_EH, exact_pos_E = item
        plan = group_schedule(sparse, q_pos_R.min(), quantized, view.pages.group, spec)

        def tile(index, state: Softmax) -> Softmax:
            steps = index * TILE_GROUPS + jnp.arange(TILE_GROUPS)
            groups = plan.block(jnp.minimum(steps, plan.steps - 1))
            pages = jax.tree.map(lambda x: _fetch(x, table_J[groups]), view.pages)
            pos_CG = groups[:, None] * view.pages.group + jnp.arange(view.pages.group)
            stored_CG = (steps < plan.steps)[:, None] & ~hole_mask(pages.holes)
            visible = visible_tokens(sparse, q_pos_R[:, None, None], pos_CG, spec) & stored_CG
            return _visit_groups(state, q_RH, pages, visible)

        state = lax.fori_loop(0, -(-plan.steps // TILE_GROUPS), tile, Softmax.empty(rows, H))
        visible = visible_tokens(sparse, q_pos_R[:, None], exact_pos_E, spec) & (exact_pos_E >= 0)
        return _visit_exact(state, q_RH, exact_k_EH, exact_v_EH, visible).output()

    def flat(x: jax.Array) -> jax.Array:
        return x.reshape(B * K, *x.shape[2:])

    items = (
        q_PRH.reshape(B * K, rows, H),
        flat(q_pos_PR),
        flat(sparse_BK),
        flat(view.table_BKJ),
        jnp.repeat(view.quantized_B, K),
        flat(view.exact_k_BKEH),
        flat(view.exact_v_BKEH),
        flat(view.exact_pos_BKE),
    )
    out = lax.map(one_head, items).reshape(B, K, N // K, T, H)
    return out.transpose(0, 3, 1, 2, 4).reshape(B, T, N, H).astype(q_BTNH.dtype)


def group_schedule(
    sparse: jax.Array, first_query: jax.Array, quantized: jax.Array, group: int, spec: AttentionSpec
) -> Schedule:
    """Groups that queries from `first_query` on may see, as the two runs of a `Schedule` whose blocks are groups."""
    blocks = block_schedule(sparse, jnp.int32(0), first_query // spec.block_size, spec)
    end = quantized // group
    first = jnp.minimum(blocks.first * spec.block_size // group, end)
    sink_end = -(-(blocks.first + blocks.n_sink) * spec.block_size // group)
    n_sink = jnp.where(blocks.n_sink > 0, jnp.clip(sink_end - first, 0, end - first), 0)
    lo = jnp.clip(blocks.lo * spec.block_size // group, first + n_sink, end)
    return Schedule(first, n_sink, lo, end - 1)


def _fetch(x: jax.Array, pages_C: jax.Array) -> jax.Array:
    """Copies of some pages; slices, since XLA's CPU gather goes element by element."""
    return jnp.stack([lax.dynamic_index_in_dim(x, pages_C[c], keepdims=False) for c in range(TILE_GROUPS)])


def _visit_groups(state: Softmax, q_RH: jax.Array, pages: Pages, visible_RCG: jax.Array) -> Softmax:
    k_scale, k_zero, v_scale, v_zero = (
        x.astype(jnp.float32) for x in (pages.k_scale, pages.k_zero, pages.v_scale, pages.v_zero)
    )
    k_CGH, v_CGH = (unpack_xla(x, pages.bits).astype(jnp.float32) for x in (pages.k_codes, pages.v_codes))
    scores = jnp.einsum("crh,cgh->rcg", q_RH * k_scale[:, None], k_CGH)
    scores += jnp.einsum("rh,ch->rc", q_RH, k_zero, precision="highest")[..., None]
    if pages.k_norm is not None:
        scores *= pages.k_norm.astype(jnp.float32)
    state, weights = _extend(state, scores, visible_RCG, axes=(1, 2))
    # Value groups: C channels share the scale of a token.
    C, G, channel_groups = v_scale.shape
    values = v_CGH.reshape(C, G, channel_groups, -1)
    out = jnp.einsum("rcgi,cgij->rij", weights[..., None] * v_scale, values)
    out += jnp.einsum("rcg,cgi->ri", weights, v_zero)[..., None]
    return state._replace(acc_RH=state.acc_RH + out.reshape(state.acc_RH.shape))


def _visit_exact(state: Softmax, q_RH: jax.Array, k_EH: jax.Array, v_EH: jax.Array, visible_RE: jax.Array) -> Softmax:
    scores = jnp.einsum("rh,eh->re", q_RH, k_EH.astype(jnp.float32))
    state, weights = _extend(state, scores, visible_RE, axes=(1,))
    out = jnp.einsum("re,eh->rh", weights, v_EH.astype(jnp.float32))
    return state._replace(acc_RH=state.acc_RH + out)


def _extend(state: Softmax, scores: jax.Array, visible: jax.Array, axes: tuple[int, ...]) -> tuple[Softmax, jax.Array]:
    """Rescales the state for more scores and counts them in; the caller adds weights times values."""
    scores = jnp.where(visible, scores, MASKED)
    top_R = jnp.maximum(state.top_R, scores.max(axes))
    expanded = top_R.reshape(-1, *[1] * len(axes))
    weights = jnp.where(visible, jnp.exp(scores - expanded), 0.0)
    decay_R = jnp.exp(state.top_R - top_R)
    return Softmax(state.acc_RH * decay_R[:, None], top_R, state.sum_R * decay_R + weights.sum(axes)), weights
