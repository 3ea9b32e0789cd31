"""What the result of a run depends on besides its settings, as digests that are stored with every checkpoint."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from elastic_jax.errors import DataError

DATA = "digest"
"""Digest of the training data, in a checkpoint's data position."""
OTHERS = "inputs"
"""Digests of other inputs by name; checkpoints of earlier versions have none."""


def stored_inputs(fingerprint: str, others: Mapping[str, str]) -> dict[str, Any]:
    """The digests as a checkpoint keeps them."""
    return {DATA: fingerprint, OTHERS: dict(others)}


def refuse_changed(directory: Path, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Raises `DataError` for inputs that are not those of the checkpoint; both as `stored_inputs` makes them.

    Inputs that the checkpoint does not know are not compared.
    """
    old = {"training data": before[DATA], **before.get(OTHERS, {})}
    new = {"training data": now[DATA], **now[OTHERS]}
    changed = [name for name in old if old[name] != new.get(name)]
    if changed:
        raise DataError(
            f"{directory}: the {' and the '.join(changed)} changed since this run began. Restore what was there, or "
            "start anew in another --run.directory."
        )


def weights_digest(arrays: Any) -> str:
    """Digest of the arrays of a tree by their bits, the same however they are divided over devices."""
    named = jax.tree_util.tree_flatten_with_path(arrays)[0]
    hasher = hashlib.sha256()
    for (path, array), total in zip(named, _bit_sums([array for _, array in named]), strict=True):
        hasher.update(f"{jax.tree_util.keystr(path)} {array.shape} {array.dtype} {int(total)}\n".encode())
    return hasher.hexdigest()


@jax.jit
def _bit_sums(arrays: list[jax.Array]) -> list[jax.Array]:
    """For each array the sum of its numbers' bits, read as integers and weighted by their places, modulo 2**32."""
    integers = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}

    def weighted(array: jax.Array) -> jax.Array:
        place = jnp.zeros(array.shape, jnp.uint32)
        for axis, size in enumerate(array.shape):  # no reshape: it would gather an array that is divided over devices
            place = place * jnp.uint32(size) + jax.lax.broadcasted_iota(jnp.uint32, array.shape, axis)
        words = jax.lax.bitcast_convert_type(array, integers[array.dtype.itemsize]).astype(jnp.uint32)
        return jnp.sum(words * (jnp.uint32(2) * place + jnp.uint32(1)), dtype=jnp.uint32)

    return [weighted(array) for array in arrays]
