"""Block selection in plain XLA: head by head, so that heads without need cost nothing, over the causal range only."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

from pallas_kernels.block_selection.scoring import SelectionSpec, block_mass, keep_blocks, make_groups
from pallas_kernels.partition import divided

STRIPS = 8
"""Strips of query blocks that a head is scored in; each sees the keys up to its own end only."""


def select_blocks_xla(
    q_BTNH: jax.Array,
    k_BSKH: jax.Array,
    spec: SelectionSpec,
    *,
    heads: jax.Array,
    segment_ids: jax.Array | None = None,
    lengths: jax.Array | None = None,
) -> jax.Array:
    """See `select_blocks`."""
    run = divided(partial(_select, spec=spec), ("BTNH", "BSKH", "BK", "BS", "B"), "BNQJ")
    return run(q_BTNH, k_BSKH, heads, segment_ids, lengths)


def _select(
    q_BTNH: jax.Array,
    k_BSKH: jax.Array,
    heads_BK: jax.Array,
    segment_ids: jax.Array | None,
    lengths: jax.Array | None,
    *,
    spec: SelectionSpec,
) -> jax.Array:
    q_BNQAD, k_BKJAD, places, geometry = make_groups(q_BTNH, k_BSKH, spec, lengths, segment_ids)
    (B, N, Q), K = q_BNQAD.shape[:3], k_BKJAD.shape[1]
    J, first = geometry.key_blocks, geometry.first_query_block
    height = -(-Q // STRIPS)

    def score(row: jax.Array, head: jax.Array) -> jax.Array:
        q_QAD, k_JAD = q_BNQAD[row, head], k_BKJAD[row, head // (N // K)]
        strips = []
        for at in range(0, Q, height):
            part, end = slice(at, at + height), min(first + at + height, J)
            mass = block_mass(
                q_QAD[part],
                k_JAD[:end],
                places.live_BQA[row, part],
                places.start_BQ[row, part],
                places.diag_Q[part],
                spec,
            )
            strips.append(jnp.pad(mass, ((0, 0), (0, J - end))))
        return jnp.concatenate(strips)

    def choose(item: jax.Array) -> jax.Array:
        row, head = item // N, item % N
        needed = heads_BK[row, head // (N // K)]
        mass = lax.cond(needed, lambda: score(row, head), lambda: jnp.zeros((Q, J), jnp.float32))
        first_chunk_Q = None if places.first_chunk_BQ is None else places.first_chunk_BQ[row]
        return keep_blocks(mass, places.start_BQ[row], places.diag_Q, spec.threshold, first_chunk_Q)

    return lax.map(choose, jnp.arange(B * N)).reshape(B, N, Q, J)
