"""Hadamard rotation of the head dimension: it spreads outlier channels, and dot products do not notice it."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def hadamard(x: jax.Array) -> jax.Array:
    """Multiplies the last axis by an orthonormal symmetric Hadamard matrix; keeps the type.

    A width that is no power of two is rotated in blocks of its largest power-of-two divisor. Butterflies of single
    additions: the result for a token does not depend on the tokens beside it, as a matrix product's might.
    """
    width = x.shape[-1]
    block = width & -width
    y = x.astype(jnp.float32)
    half = 1
    while half < block:
        pairs = y.reshape(*x.shape[:-1], -1, 2, half)
        a, b = pairs[..., 0, :], pairs[..., 1, :]
        y = jnp.stack([a + b, a - b], -2).reshape(x.shape)
        half *= 2
    return (y * block**-0.5).astype(x.dtype)
