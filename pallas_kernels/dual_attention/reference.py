"""Dual and routed attention by the definition: two dense attentions and, for the routed form, their mixture."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from pallas_kernels.blocks import by_block, clear_padding
from pallas_kernels.call import AttentionCall
from pallas_kernels.hybrid_attention.reference import hybrid_attention_reference


def dual_attention_reference(call: AttentionCall) -> tuple[jax.Array, jax.Array]:
    """(full, sparse) outputs."""
    full, sparse = (hybrid_attention_reference(call, call.every_head(sparse))[0] for sparse in (False, True))
    return full, sparse


def routed_attention_reference(call: AttentionCall, z: jax.Array, sparse: jax.Array) -> jax.Array:
    """z * full + (1 - z) * sparse; autodiff of this is the gradient that the other implementations compute.

    The value of z is 1 where a head is not sparse and 0 where it is; only its gradient is that of z.
    """
    z += jax.lax.stop_gradient(jnp.where(sparse, 0.0, 1.0).astype(z.dtype) - z)
    full, sparse_out = dual_attention_reference(call)
    T, S = call.q_BTNH.shape[1], call.k_BSKH.shape[1]
    rows = call.rows()
    z_BKT = by_block(z, rows)[:, :, jnp.arange(S - T, S) // call.spec.block_size]
    z_BTN1 = jnp.repeat(jnp.swapaxes(z_BKT, 1, 2), call.groups, axis=2)[..., None]
    mixed = z_BTN1 * full.astype(jnp.float32) + (1 - z_BTN1) * sparse_out.astype(jnp.float32)
    return clear_padding(mixed.astype(call.q_BTNH.dtype), rows.valid_BS)
