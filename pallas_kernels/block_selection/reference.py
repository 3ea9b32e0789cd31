"""Block selection by the definition: every head scored at once."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp

from pallas_kernels.block_selection.scoring import SelectionSpec, block_mass, keep_blocks, make_groups


def select_blocks_reference(
    q_BTNH: jax.Array,
    k_BSKH: jax.Array,
    spec: SelectionSpec,
    *,
    heads: jax.Array,
    segment_ids: jax.Array | None = None,
    lengths: jax.Array | None = None,
) -> jax.Array:
    """See `select_blocks`."""
    q_BNQAD, k_BKJAD, places, _ = make_groups(q_BTNH, k_BSKH, spec, lengths, segment_ids)
    G = q_BTNH.shape[2] // k_BSKH.shape[2]
    k_BNJAD = jnp.repeat(k_BKJAD, G, axis=1)
    score = partial(block_mass, diag_Q=places.diag_Q, spec=spec)
    score_heads = jax.vmap(score, (0, 0, None, None))
    mass_BNQJ = jax.vmap(score_heads)(q_BNQAD, k_BNJAD, places.live_BQA, places.start_BQ)
    mass_BNQJ = jnp.where(jnp.repeat(heads, G, axis=1)[:, :, None, None], mass_BNQJ, 0.0)
    return keep_blocks(
        mass_BNQJ,
        places.start_BQ[:, None],
        places.diag_Q,
        spec.threshold,
        None if places.first_chunk_BQ is None else places.first_chunk_BQ[:, None],
    )
