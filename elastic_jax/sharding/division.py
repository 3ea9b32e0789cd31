"""How an attention call is divided over the mesh that is set: rows, KV heads, tokens.

Which exchange of keys and values serves attention that does not reach far: an estimate of bytes and FLOPs.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
from jax.sharding import PartitionSpec

from elastic_jax.sharding.mesh import ROWS
from pallas_kernels.schedule import AttentionSpec

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


def mesh_divides() -> bool:
    """Whether the mesh that is set has several devices, and no `shard_map` has divided the arrays already."""
    mesh = jax.sharding.get_abstract_mesh()
    return math.prod(mesh.shape.values()) > 1 and not mesh.manual_axes


def find_division(rows: int, query_heads: int, kv_heads: int) -> Division:
    """The division of a call under the mesh that is set.

    Rows go over as many of the axes for rows as divide them. Heads go over `tensor`; where it does not divide the KV
    heads, these are repeated, and where it does not divide the query heads, every device of it has them all.
    """
    mesh = jax.sharding.get_abstract_mesh()
    row_axes = tuple(axis for axis in ROWS if mesh.shape.get(axis, 1) > 1)
    while rows % math.prod(mesh.shape[axis] for axis in row_axes):
        row_axes = row_axes[:-1]
    tensor = mesh.shape.get("tensor", 1)
    repeats = tensor // math.gcd(tensor, kv_heads)
    divided = tensor > 1 and query_heads % (kv_heads * repeats) == 0
    tokens = (CONTEXT,) if mesh.shape.get(CONTEXT, 1) > 1 else ()
    return Division(row_axes, ("tensor",) if divided else (), tokens, repeats if divided else 1, mesh.axis_names)


FLOPS_PER_BYTE = 2000.0
"""Products that a chip does in the time of one byte from its neighbours: about 2,300 on v5p (459 TFLOP/s, one axis of
the torus at 200 GB/s), 2,000 on v6e, 2,200 on H100 with NVLink (989 TFLOP/s, 450 GB/s)."""


class Halo(NamedTuple):
    """Blocks of other shards that a shard needs."""

    before: int
    """Blocks right before the shard's first token."""
    sinks: int
    """First blocks of the segment that runs across the shard's left border, where they lie further away."""


def find_halo(tokens: int, shards: int, spec: AttentionSpec) -> Halo:
    """The halo that makes attention exact on a shard: for streaming heads, and under a token window for every head.

    A window ends the sight of sinks as well, so these are not fetched; instead the halo is longer by as many blocks,
    all out of the window, so that no visible block looks like the start of its segment.
    """
    farthest = (shards - 1) * tokens // shards // spec.block_size
    if spec.window is None:
        return Halo(min(spec.local_blocks - 1, farthest), spec.sink_blocks)
    return Halo(min(-(-(spec.window - 1) // spec.block_size) + spec.sink_blocks, farthest), 0)


def halo_is_cheaper(
    tokens: int, shards: int, groups: int, head_dim: int, item: int, spec: AttentionSpec, halo: Halo
) -> bool:
    """Whether attention of limited reach is cheaper with a halo than with all keys and values.

    Both are counted for one KV head of one row on the busiest device, as bytes received plus FLOPs of the forward
    products over `FLOPS_PER_BYTE`:

    * all keys: K and V of the other shards, and queries and outputs that change places for the sake of balance; every
      device then has its equal share of the pairs;
    * halo: K and V of the blocks before the shard, and what the sum that picks the sinks passes along; the last shard
      then has the most pairs, since its queries all see as far as they may.

    The reach is the window or, without one, sinks and local blocks. So a halo wins unless it is about as long as the
    rest of the row.
    """
    own = tokens // shards
    token_bytes, pair_flops = head_dim * item, 4 * groups * head_dim
    reach = spec.window or (spec.sink_blocks + spec.local_blocks) * spec.block_size

    def pairs(first: int, last: int) -> int:
        """Visible pairs of the queries from `first` to before `last`."""
        growing = max(min(last, reach) - first, 0)
        return growing * (2 * first + growing + 1) // 2 + (last - first - growing) * reach

    everything = token_bytes * (2 * (tokens - own) + 2 * groups * own)
    everything += pair_flops * math.ceil(pairs(0, tokens) / shards) / FLOPS_PER_BYTE
    near = token_bytes * 2 * (halo.before + (shards - 1) * halo.sinks) * spec.block_size
    near += pair_flops * pairs(tokens - own, tokens) / FLOPS_PER_BYTE
    return near < everything
