"""The visiting rule in terms of a cache: the groups that each head visits, and the tokens that each query sees."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from pallas_kernels.schedule import AttentionSpec, Schedule, block_schedule, query_positions


def group_schedule(
    sparse: jax.Array, first_query: jax.Array, quantized: jax.Array, group: int, spec: AttentionSpec
) -> Schedule:
    """Groups that queries from `first_query` on may see, as the two runs of a `Schedule` whose blocks are groups.

    The runs of blocks are widened to whole groups and cut where the quantised tokens end; what a run holds too much is
    masked token by token. The first query decides, since later ones see no quantised group that it does not see.
    """
    blocks = block_schedule(sparse, jnp.int32(0), first_query // spec.block_size, spec)
    end = quantized // group
    first = jnp.minimum(blocks.first * spec.block_size // group, end)
    sink_end = -(-(blocks.first + blocks.n_sink) * spec.block_size // group)
    n_sink = jnp.where(blocks.n_sink > 0, jnp.clip(sink_end - first, 0, end - first), 0)
    lo = jnp.clip(blocks.lo * spec.block_size // group, first + n_sink, end)
    return Schedule(first, n_sink, lo, end - 1)


def group_runs(
    sparse_BK: jax.Array, position_B: jax.Array, quantized_B: jax.Array, group: int, spec: AttentionSpec
) -> jax.Array:
    """The two runs of groups that each head visits: int32 `[B, K, 4]`, `first`, `n_sink`, `lo` and the steps."""
    runs = group_schedule(sparse_BK, position_B[:, None], quantized_B[:, None], group, spec)
    columns = (runs.first, runs.n_sink, runs.lo, jnp.maximum(runs.steps, 0))
    return jnp.stack([jnp.broadcast_to(x, sparse_BK.shape) for x in columns], -1).astype(jnp.int32)


def token_limits(sparse_BK: jax.Array, position_B: jax.Array, queries: int, spec: AttentionSpec) -> jax.Array:
    """The tokens that each query sees: int32 `[B, K, T, 3]`, `least`, `near` and `last`.

    A query sees tokens from `least` to `last`, less those from the end of the sinks up to `near`: `visible_tokens` in
    the form of limits, which a kernel compares with positions.
    """
    q_pos_B1T = query_positions(position_B, queries)[:, None]
    near = jnp.maximum(q_pos_B1T // spec.block_size + 1 - spec.local_blocks, 0) * spec.block_size
    near_BKT = jnp.where(sparse_BK[..., None], near, 0)
    least = jnp.zeros_like(q_pos_B1T) if spec.window is None else q_pos_B1T + 1 - spec.window
    columns = (jnp.maximum(least, 0), near_BKT, q_pos_B1T)
    return jnp.stack([jnp.broadcast_to(x, near_BKT.shape) for x in columns], -1).astype(jnp.int32)
