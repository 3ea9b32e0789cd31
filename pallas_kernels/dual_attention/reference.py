"""Dual and routed attention by the definition: two dense attentions and, for the routed form, their mixture."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from pallas_kernels.blocks import Geometry, by_block, clear_padding, describe_rows
from pallas_kernels.hybrid_attention.reference import attention_and_lse
from pallas_kernels.schedule import AttentionSpec


def dual_attention_reference(
    q_BTNH: jax.Array,
    k_BSKH: jax.Array,
    v_BSKH: jax.Array,
    spec: AttentionSpec,
    *,
    block_mask: jax.Array | None = None,
    full_block_mask: jax.Array | None = None,
    segment_ids: jax.Array | None = None,
    lengths: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
    """(full, sparse) outputs."""

    def every_head(mode: int) -> jax.Array:
        modes = jnp.full((q_BTNH.shape[0], k_BSKH.shape[2]), mode)
        return attention_and_lse(
            q_BTNH,
            k_BSKH,
            v_BSKH,
            modes,
            spec,
            block_mask=block_mask,
            full_block_mask=full_block_mask,
            segment_ids=segment_ids,
            lengths=lengths,
        )[0]

    return every_head(0), every_head(1)


def routed_attention_reference(
    q_BTNH: jax.Array,
    k_BSKH: jax.Array,
    v_BSKH: jax.Array,
    z: jax.Array,
    spec: AttentionSpec,
    *,
    block_mask: jax.Array | None = None,
    full_block_mask: jax.Array | None = None,
    segment_ids: jax.Array | None = None,
    lengths: jax.Array | None = None,
) -> jax.Array:
    """z * full + (1 - z) * sparse; autodiff of this is the gradient that the other implementations compute.

    z counts as 1 above 0.5 and as 0 otherwise, as it does there.
    """
    z += jax.lax.stop_gradient(jnp.where(z > 0.5, 1.0, 0.0).astype(z.dtype) - z)
    full, sparse = dual_attention_reference(
        q_BTNH,
        k_BSKH,
        v_BSKH,
        spec,
        block_mask=block_mask,
        full_block_mask=full_block_mask,
        segment_ids=segment_ids,
        lengths=lengths,
    )
    (B, T, N, _), (S, K) = q_BTNH.shape, k_BSKH.shape[1:3]
    rows = describe_rows(B, Geometry(spec.block_size, T, S), lengths, segment_ids)
    z_BKT = by_block(z, rows)[:, :, jnp.arange(S - T, S) // spec.block_size]
    z_BTN1 = jnp.repeat(jnp.swapaxes(z_BKT, 1, 2), N // K, axis=2)[..., None]
    mixed = z_BTN1 * full.astype(jnp.float32) + (1 - z_BTN1) * sparse.astype(jnp.float32)
    return clear_padding(mixed.astype(q_BTNH.dtype), rows.valid_BS)
