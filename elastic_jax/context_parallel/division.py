"""How an attention call is divided over the mesh that is set: rows, KV heads, tokens."""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
from jax.sharding import PartitionSpec

from elastic_jax.sharding import ROWS

CONTEXT = "context"


class Division(NamedTuple):
    """Mesh axes that divide an attention call."""

    rows: tuple[str, ...]
    heads: tuple[str, ...]
    tokens: tuple[str, ...]
    repeats: int
    """How often each KV head is repeated so that every device has the KV heads of its query heads."""
    mesh_axes: tuple[str, ...]
    """All axes of the mesh."""

    @property
    def by_token(self) -> PartitionSpec:
        """Of `[B, T, heads, ...]`."""
        return PartitionSpec(self.rows, self.tokens, self.heads)

    @property
    def by_head(self) -> PartitionSpec:
        """Of `[B, heads, ...]`."""
        return PartitionSpec(self.rows, self.heads)

    @property
    def by_segment(self) -> PartitionSpec:
        """Of `[B, M, heads]`."""
        return PartitionSpec(self.rows, None, self.heads)

    @property
    def by_row(self) -> PartitionSpec:
        """Of `[B, ...]`."""
        return PartitionSpec(self.rows)


def context_size() -> int:
    """Devices that divide the tokens of a row: the `context` axis of the mesh that `jax.set_mesh` set, else 1."""
    return jax.sharding.get_abstract_mesh().shape.get(CONTEXT, 1)


def find_division(rows: int, query_heads: int, kv_heads: int) -> Division | None:
    """The division of a call under the mesh that is set; None on one device and inside another `shard_map`.

    Rows go over as many of the axes for rows as divide them. Heads go over `tensor`; where it does not divide the KV
    heads, these are repeated, and where it does not divide the query heads, every device of it has them all.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if math.prod(mesh.shape.values()) == 1 or mesh.manual_axes:
        return None
    row_axes = tuple(axis for axis in ROWS if mesh.shape.get(axis, 1) > 1)
    while rows % math.prod(mesh.shape[axis] for axis in row_axes):
        row_axes = row_axes[:-1]
    tensor = mesh.shape.get("tensor", 1)
    repeats = tensor // math.gcd(tensor, kv_heads)
    divided = tensor > 1 and query_heads % (kv_heads * repeats) == 0
    tokens = (CONTEXT,) if mesh.shape.get(CONTEXT, 1) > 1 else ()
    return Division(row_axes, ("tensor",) if divided else (), tokens, repeats if divided else 1, mesh.axis_names)
