"""Decode attention by the definition: the whole cache dequantised, one softmax over a dense mask, float32."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from pallas_kernels.decode_attention.view import CacheView, hole_mask
from pallas_kernels.kv_quant.reference import dequantize_group_reference, unpack_reference
from pallas_kernels.schedule import AttentionSpec, query_positions, visible_tokens


def decode_attention_reference(
    q_BTNH: jax.Array, view: CacheView, position_B: jax.Array, sparse_BK: jax.Array, spec: AttentionSpec
) -> jax.Array:
    """softmax(q k^T * scale, over the visible tokens) v."""
    B, T, N, H = q_BTNH.shape
    K, J = view.table_BKJ.shape[1:]
    G, C, bits = view.pages.group, view.pages.v_scale.shape[-1], view.pages.bits
    pages = jax.tree.map(lambda x: x[view.table_BKJ], view.pages)
    k = dequantize_group_reference(unpack_reference(pages.k_codes, bits), pages.k_scale, pages.k_zero, axis=3)
    if pages.k_norm is not None:
        k = k * pages.k_norm[..., None].astype(jnp.float32)
    v = unpack_reference(pages.v_codes, bits).reshape(B, K, J, G, C, H // C)
    v = dequantize_group_reference(v, pages.v_scale, pages.v_zero, axis=5)

    pos = jnp.arange(J * G)[None, None]
    stored = (pos < view.quantized_B[:, None, None]) & ~hole_mask(pages.holes).reshape(B, K, J * G)
    exact_k, exact_v = (x.astype(jnp.float32) for x in (view.exact_k_BKEH, view.exact_v_BKEH))
    k_BKSH = jnp.concatenate([k.reshape(B, K, J * G, H), exact_k], 2)
    v_BKSH = jnp.concatenate([v.reshape(B, K, J * G, H), exact_v], 2)
    pos_BKS = jnp.concatenate([jnp.where(stored, pos, -1), view.exact_pos_BKE], 2)

    q_pos_BT = query_positions(position_B, T)
    visible = (
        visible_tokens(sparse_BK[:, :, None, None], q_pos_BT[:, None, :, None], pos_BKS[:, :, None], spec)
        & (pos_BKS >= 0)[:, :, None]
    )
    q = q_BTNH.astype(jnp.float32).reshape(B, T, K, N // K, H)
    scores = jnp.einsum("btkgh,bksh->bkgts", q, k_BKSH, precision="highest") * spec.scale
    weights = jax.nn.softmax(jnp.where(visible[:, :, None], scores, -jnp.inf), axis=-1)
    out = jnp.einsum("bkgts,bksh->btkgh", weights, v_BKSH, precision="highest")
    return out.reshape(B, T, N, H).astype(q_BTNH.dtype)
