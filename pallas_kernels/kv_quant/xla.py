"""Group quantisation and planar packing as array formulas; XLA fuses them on every platform."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike

WORD_BITS = 32


def divide(a: jax.Array, b: jax.Array | float) -> jax.Array:
    """a / b, correctly rounded. A divisor that XLA knows to be a broadcast becomes a product with its reciprocal, and
    codes at ties would differ from the definition; the test for NaN hides the broadcast and costs next to nothing."""
    return a / jnp.where(jnp.isnan(a), 1.0, b)


def quantize_group_xla(
    x: jax.Array, valid: jax.Array | None, axis: int, bits: int, metadata_dtype: DTypeLike
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """See `quantize_group`."""
    x = x.astype(jnp.float32)
    low, high = x, x
    if valid is not None:
        low, high = jnp.where(valid, x, jnp.inf), jnp.where(valid, x, -jnp.inf)
    low, high = low.min(axis), high.max(axis)
    if valid is not None:
        some = low <= high
        low, high = jnp.where(some, low, 0.0), jnp.where(some, high, 0.0)
    limit = float(jnp.finfo(metadata_dtype).max)
    zero = jnp.clip(low, -limit, limit).astype(metadata_dtype)
    scale = jnp.minimum(divide(high - low, 2**bits - 1), limit).astype(metadata_dtype)
    # The codes follow from the rounded pair, as the reader will use it.
    z, s = (jnp.expand_dims(y.astype(jnp.float32), axis) for y in (zero, scale))
    ratio = jnp.where(s > 0, divide(x - z, jnp.where(s > 0, s, 1.0)), 0.0)
    codes = jnp.round(jnp.clip(ratio, 0.0, 2**bits - 1))
    if valid is not None:
        codes = jnp.where(valid, codes, 0.0)
    return codes.astype(jnp.uint8), scale, zero


def dequantize_group_xla(codes: jax.Array, scale: jax.Array, zero: jax.Array, axis: int) -> jax.Array:
    """See `dequantize_group`."""
    s, z = (jnp.expand_dims(y.astype(jnp.float32), axis) for y in (scale, zero))
    return codes.astype(jnp.float32) * s + z


def pack_xla(codes: jax.Array, bits: int) -> jax.Array:
    """See `pack`."""
    *outer, tokens, width = codes.shape
    slots = WORD_BITS // bits
    planes = (codes.astype(jnp.uint32) & jnp.uint32(2**bits - 1)).reshape(*outer, slots, tokens // slots, width)
    shifted = planes << _shifts(slots, bits, planes.ndim)
    return lax.reduce(shifted, jnp.uint32(0), lax.bitwise_or, (len(outer),))


def unpack_xla(words: jax.Array, bits: int) -> jax.Array:
    """See `unpack`."""
    *outer, rows, width = words.shape
    slots = WORD_BITS // bits
    planes = words[..., None, :, :]
    planes = (planes >> _shifts(slots, bits, planes.ndim)) & jnp.uint32(2**bits - 1)
    return planes.reshape(*outer, slots * rows, width).astype(jnp.uint8)


def _shifts(slots: int, bits: int, rank: int) -> jax.Array:
    """Bits before each slot of a word, `[..., slots, 1, 1]` of `rank` axes."""
    return (jnp.arange(slots, dtype=jnp.uint32) * bits).reshape(*[1] * (rank - 3), slots, 1, 1)
