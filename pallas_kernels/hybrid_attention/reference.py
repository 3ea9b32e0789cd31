"""Hybrid attention by the definition: a dense mask and one softmax, in float32. Slow and quadratic on purpose."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from pallas_kernels.blocks import by_block, clear_padding
from pallas_kernels.call import AttentionCall


def allowed_pairs(call: AttentionCall, sparse: jax.Array) -> jax.Array:
    """Dense mask `[B, K, G, T, S]` of the (query, key) pairs that each query head attends to."""
    spec, rows = call.spec, call.rows()
    queries, keys = call.q_BTNH.shape[1], call.k_BSKH.shape[1]
    k_pos = jnp.arange(keys)
    q_pos = k_pos[keys - queries :]
    k_block, q_block = k_pos // spec.block_size, q_pos // spec.block_size
    causal = k_pos[None] <= q_pos[:, None]
    if spec.window is not None:
        causal &= q_pos[:, None] - k_pos[None] < spec.window
    start_BT1 = rows.start_BJ[:, q_block, None]
    visible = causal[None] & (k_block[None, None] >= start_BT1)
    if rows.valid_BS is not None:
        visible &= rows.valid_BS[:, None, :] & rows.valid_BS[:, keys - queries :, None]

    sink = k_block[None, None] - start_BT1 < spec.sink_blocks
    local = k_block[None] > q_block[:, None] - spec.local_blocks
    streaming = (sink | local[None])[:, None, None]
    everything = jnp.ones_like(streaming)

    def by_token(mask_BNIJ: jax.Array) -> jax.Array:
        mask = mask_BNIJ.reshape(-1, call.kv_heads, call.groups, *mask_BNIJ.shape[2:])
        return mask[..., q_block - q_block[0], :][..., k_block]

    of_sparse = streaming if call.block_mask is None else by_token(call.block_mask)
    of_full = everything if call.full_block_mask is None else by_token(call.full_block_mask)
    is_sparse_BKT = by_block(sparse, rows)[:, :, q_block]
    return jnp.where(is_sparse_BKT[:, :, None, :, None], of_sparse, of_full) & visible[:, None, None]


def hybrid_attention_reference(call: AttentionCall, sparse: jax.Array) -> tuple[jax.Array, jax.Array]:
    """softmax(q k^T * scale, over the allowed pairs) v, and the log-sum-exp `[B, T, N]` of those scores.

    0 and -inf where a query may see nothing.
    """
    (B, T, N, H), K = call.q_BTNH.shape, call.kv_heads
    rows = call.rows()
    q, k, v = (clear_padding(x, rows.valid_BS).astype(jnp.float32) for x in (call.q_BTNH, call.k_BSKH, call.v_BSKH))
    scores = jnp.einsum("btkgh,bskh->bkgts", q.reshape(B, T, K, -1, H), k, precision="highest") * call.spec.scale
    scores = jnp.where(allowed_pairs(call, sparse), scores, -jnp.inf)
    top = jax.lax.stop_gradient(jnp.max(scores, axis=-1, keepdims=True, initial=-1e30))
    weights = jnp.exp(scores - top)
    total = weights.sum(-1, keepdims=True)
    safe_total = jnp.maximum(total, 1e-30)
    out = jnp.einsum("bkgts,bskh->btkgh", weights / safe_total, v, precision="highest")
    out = clear_padding(out.reshape(B, T, N, H), rows.valid_BS).astype(call.q_BTNH.dtype)
    lse_BKGT = jnp.where(total > 0, top + jnp.log(safe_total), -jnp.inf)[..., 0]
    return out, lse_BKGT.reshape(B, N, T).swapaxes(1, 2)
