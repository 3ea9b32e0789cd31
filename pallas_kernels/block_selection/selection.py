"""Which blocks to keep, given how much attention each is worth."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax


def keep_blocks(
    mass: jax.Array, start: jax.Array, diag: jax.Array, threshold: float, first_chunk: jax.Array | None = None
) -> jax.Array:
    """The fewest blocks whose mass reaches `threshold` of a query block's total, the first and the last one included.

    Args:
        mass: float `[..., J]`, worth of each key block; 0 outside `[start, diag]`.
        start: `[...]`, first key block of the sequence, always kept.
        diag: `[...]`, the query block's own position, always kept. Nothing is kept where it lies before `start`.
        threshold: share of the mass to keep.
        first_chunk: `[...]`, where the released code keeps a block more: it takes both ends of the range as given but
            counts only one of them, and looks at what was taken one block late.

    Returns:
        bool `[..., J]`.
    """
    block_J = jnp.arange(mass.shape[-1])
    start, diag = start[..., None], diag[..., None]
    ends = (block_J == start) | (block_J == diag)
    given = ends if first_chunk is None else jnp.where(first_chunk[..., None], block_J == diag, ends)
    order = jnp.argsort(jnp.where(given, -jnp.inf, -mass), axis=-1)
    others = jnp.take_along_axis(jnp.where(given, 0.0, mass), order, axis=-1)
    taken = jnp.sum(mass, axis=-1, keepdims=True, where=given) + jnp.cumsum(others, axis=-1) - others
    if first_chunk is not None:
        late = jnp.pad(taken[..., 1:-1], [(0, 0)] * (mass.ndim - 1) + [(2, 0)])[..., : mass.shape[-1]]
        taken = jnp.where(first_chunk[..., None], late, taken)
    wanted = taken < threshold * mass.sum(-1, keepdims=True)
    keep = jnp.take_along_axis(wanted, jnp.argsort(order, axis=-1), axis=-1) & ~given
    return (keep | ends) & (block_J >= start) & (block_J <= diag)


def first_chunk_tokens(length: jax.Array) -> jax.Array:
    """Tokens that the released code scores at once in a sequence of `length`: 2,048 to 16,384."""
    power = jnp.left_shift(1, 32 - lax.clz(jnp.maximum(length - 1, 0).astype(jnp.int32)))
    return jnp.maximum(jnp.minimum(jnp.maximum(power, 2048), 2**28 // power), 2048)
