"""Group quantisation and packing by the definition: one group, one code at a time."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from pallas_kernels.kv_quant.xla import WORD_BITS, divide


def quantize_group_reference(
    x: jax.Array, valid: jax.Array | None, axis: int, bits: int, metadata_dtype: DTypeLike
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """See `quantize_group`."""

    @partial(jnp.vectorize, signature="(g),(g)->(g),(),()")
    def one_group(x_G, valid_G):
        low = jnp.min(x_G, initial=jnp.inf, where=valid_G)
        high = jnp.max(x_G, initial=-jnp.inf, where=valid_G)
        low, high = (jnp.where(valid_G.any(), y, 0.0) for y in (low, high))
        limits = jnp.finfo(metadata_dtype)
        zero = jnp.clip(low, float(limits.min), float(limits.max)).astype(metadata_dtype)
        scale = jnp.minimum(divide(high - low, 2**bits - 1), float(limits.max)).astype(metadata_dtype)
        s, z = scale.astype(jnp.float32), zero.astype(jnp.float32)
        codes_G = jnp.rint(jnp.clip(divide(x_G - z, s), 0, 2**bits - 1))
        return jnp.where(valid_G & (s > 0), codes_G, 0).astype(jnp.uint8), scale, zero

    valid = jnp.ones(x.shape, bool) if valid is None else jnp.broadcast_to(valid, x.shape)
    codes, scale, zero = one_group(*(jnp.moveaxis(y, axis, -1) for y in (x.astype(jnp.float32), valid)))
    return jnp.moveaxis(codes, -1, axis), scale, zero


def dequantize_group_reference(codes: jax.Array, scale: jax.Array, zero: jax.Array, axis: int) -> jax.Array:
    """See `dequantize_group`."""
    one_group = jnp.vectorize(lambda c_G, s, z: c_G * s + z, signature="(g),(),()->(g)")
    codes, scale, zero = (y.astype(jnp.float32) for y in (jnp.moveaxis(codes, axis, -1), scale, zero))
    return jnp.moveaxis(one_group(codes, scale, zero), -1, axis)


def pack_reference(codes: jax.Array, bits: int) -> jax.Array:
    """See `pack`."""
    rows = codes.shape[-2] * bits // WORD_BITS
    words = jnp.zeros((*codes.shape[:-2], rows, codes.shape[-1]), jnp.uint32)
    for token in range(codes.shape[-2]):
        placed = codes[..., token, :].astype(jnp.uint32) % 2**bits << (token // rows * bits)
        words = words.at[..., token % rows, :].set(words[..., token % rows, :] | placed)
    return words


def unpack_reference(words: jax.Array, bits: int) -> jax.Array:
    """See `unpack`."""
    rows = words.shape[-2]
    tokens = [
        (words[..., token % rows, :] >> (token // rows * bits)) % 2**bits for token in range(rows * WORD_BITS // bits)
    ]
    return jnp.stack(tokens, axis=-2).astype(jnp.uint8)
