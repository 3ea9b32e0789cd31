"""Hybrid attention by the definition: a dense mask and one softmax, in float32. Slow and quadratic on purpose."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from pallas_kernels.blocks import Geometry, by_block, clear_padding, describe_rows
from pallas_kernels.schedule import AttentionSpec


def allowed_pairs(
    mode: jax.Array,
    spec: AttentionSpec,
    queries: int,
    keys: int,
    *,
    block_mask: jax.Array | None,
    full_block_mask: jax.Array | None,
    segment_ids: jax.Array | None,
    lengths: jax.Array | None,
    groups: int,
) -> jax.Array:
    """Dense mask `[B, K, G, T, S]` of the (query, key) pairs that each query head attends to."""
    rows = describe_rows(mode.shape[0], Geometry(spec.block_size, queries, keys), lengths, segment_ids)
    k_pos = jnp.arange(keys)
    q_pos = k_pos[keys - queries :]
    k_block, q_block = k_pos // spec.block_size, q_pos // spec.block_size
    causal = k_pos <= q_pos[:, None]
    if spec.window is not None:
        causal &= q_pos[:, None] - k_pos < spec.window
    start_BT = rows.start_BJ[:, q_block]
    visible = causal & (k_block >= start_BT[:, :, None])
    if rows.valid_BS is not None:
        visible &= rows.valid_BS[:, None, :] & rows.valid_BS[:, keys - queries :, None]

    sink = k_block - start_BT[:, :, None] < spec.sink_blocks
    local = k_block > q_block[:, None] - spec.local_blocks
    sparse = (sink | local)[:, None, None]
    full = jnp.ones_like(sparse)

    def expand(mask_BNIJ: jax.Array) -> jax.Array:
        B, N = mask_BNIJ.shape[:2]
        first = q_block[0]
        return mask_BNIJ.reshape(B, N // groups, groups, *mask_BNIJ.shape[2:])[..., q_block - first, :][..., k_block]

    if block_mask is not None:
        sparse = expand(block_mask)
    if full_block_mask is not None:
        full = expand(full_block_mask)
    is_sparse_BKT = by_block(mode, rows)[:, :, q_block] != 0
    chosen = jnp.where(is_sparse_BKT[:, :, None, :, None], sparse, full)
    return chosen & visible[:, None, None]


def attention_and_lse(
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
) -> tuple[jax.Array, jax.Array]:
    """softmax(q k^T * scale, over the allowed pairs) v, and the log-sum-exp `[B, T, N]` of those scores.

    0 and -inf where a query may see nothing.
    """
    B, T, N, H = q_BTNH.shape
    S, K = k_BSKH.shape[1:3]
    rows = describe_rows(B, Geometry(spec.block_size, T, S), lengths, segment_ids)
    q, k, v = (clear_padding(x, rows.valid_BS).astype(jnp.float32) for x in (q_BTNH, k_BSKH, v_BSKH))
    allowed = allowed_pairs(
        mode,
        spec,
        T,
        S,
        block_mask=block_mask,
        full_block_mask=full_block_mask,
        segment_ids=segment_ids,
        lengths=lengths,
        groups=N // K,
    )
    q = q.reshape(B, T, K, N // K, H)
    scores = jnp.einsum("btkgh,bskh->bkgts", q, k, precision="highest") * spec.scale
    scores = jnp.where(allowed, scores, -jnp.inf)
    top = jax.lax.stop_gradient(jnp.max(scores, axis=-1, keepdims=True, initial=-1e30))
    weights = jnp.exp(scores - top)
    total = weights.sum(-1, keepdims=True)
    safe_total = jnp.maximum(total, 1e-30)
    out = jnp.einsum("bkgts,bskh->btkgh", weights / safe_total, v, precision="highest")
    out = clear_padding(out.reshape(B, T, N, H), rows.valid_BS).astype(q_BTNH.dtype)
    lse_BKGT = jnp.where(total > 0, top + jnp.log(safe_total), -jnp.inf)[..., 0]
    return out, lse_BKGT.reshape(B, N, T).swapaxes(1, 2)


def hybrid_attention_reference(
    q_BTNH: jax.Array,
    k_BSKH: jax.Array,
    v_BSKH: jax.Array,
    mode: jax.Array,
    spec: AttentionSpec,
    *,
    return_lse: bool = False,
    **options: Any,
) -> jax.Array | tuple[jax.Array, jax.Array]:
    """See `hybrid_attention`; `options` are the masks, segments and lengths of `attention_and_lse`."""
    out, lse = attention_and_lse(q_BTNH, k_BSKH, v_BSKH, mode, spec, **options)
    return (out, lse) if return_lse else out
