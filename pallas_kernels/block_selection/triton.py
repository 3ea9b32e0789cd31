"""Block selection on NVIDIA GPUs from compute capability 8.0: scores and their sums by blocks in Triton.

Plain XLA goes head by head, a dozen small kernels and a host's look at `heads` each, and writes every score. Here one
launch serves all heads, those without need return at once, and only sums over key blocks reach memory: the weights of a
tile under the largest score of the tile. XLA puts the tiles together and chooses.
"""

from __future__ import annotations

import math
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

from pallas_kernels.block_selection.scoring import Places, SelectionSpec, keep_blocks, make_places
from pallas_kernels.gpu.launch import compute_capability, launch
from pallas_kernels.gpu.selection import score_kernel
from pallas_kernels.gpu.tuning import choose_score_tile, padded
from pallas_kernels.partition import divided

type Array = jax.Array

SCRATCH_BYTES = 2**29
"""Most that the sums of the heads scored at once may take."""


def select_blocks_triton(
    q_BTNH: Array,
    k_BSKH: Array,
    spec: SelectionSpec,
    *,
    heads: Array,
    segment_ids: Array | None = None,
    lengths: Array | None = None,
) -> Array:
    """See `select_blocks`."""
    run = divided(partial(_select, spec=spec), ("BTNH", "BSKH", "BK", "BS", "B"), "BNQJ")
    return run(q_BTNH, k_BSKH, heads, segment_ids, lengths)


def _select(
    q_BTNH: Array,
    k_BSKH: Array,
    heads_BK: Array,
    segment_ids: Array | None,
    lengths: Array | None,
    *,
    spec: SelectionSpec,
) -> Array:
    (B, _, N, _), K = q_BTNH.shape, k_BSKH.shape[2]
    q, k, places, geometry = make_places(q_BTNH, k_BSKH, spec, lengths, segment_ids)
    scratch = 4 * B * N * geometry.query_blocks * (spec.block_size // spec.stride) * geometry.key_blocks
    chunks = next(n for n in range(1, K + 1) if K % n == 0 and (n == K or scratch <= n * SCRATCH_BYTES))

    def choose(part: tuple[Array, Array, Array]) -> Array:
        first_chunk = None if places.first_chunk_BQ is None else places.first_chunk_BQ[:, None]
        mass_BNQJ = block_mass(*part, places, spec)
        return keep_blocks(mass_BNQJ, places.start_BQ[:, None], places.diag_Q, spec.threshold, first_chunk)

    if chunks == 1:
        return choose((q, k, heads_BK))
    split = (x.reshape(*x.shape[:i], chunks, -1, *x.shape[i + 1 :]) for x, i in ((q, 2), (k, 2), (heads_BK, 1)))
    parts = tuple(jnp.moveaxis(x, i, 0) for x, i in zip(split, (2, 2, 1), strict=True))
    return jnp.moveaxis(lax.map(choose, parts), 0, 1).reshape(B, N, geometry.query_blocks, -1)


def block_mass(q_BTNH: Array, k_BSKH: Array, heads_BK: Array, places: Places, spec: SelectionSpec) -> Array:
    """Softmax over groups of keys, summed over blocks: float32 `[B, N, Q, J]`; 0 for heads without need."""
    (B, T, N, H), (S, K) = q_BTNH.shape, k_BSKH.shape[1:3]
    Q, A = places.live_BQA.shape[1:]
    J = -(-S // spec.block_size)
    head_pad = padded(H)
    tile = choose_score_tile(compute_capability(), head_pad, q_BTNH.dtype.itemsize, A)
    row_tiles, key_tiles = -(-Q * A // tile.queries), -(-J * A // tile.keys)
    per_tile = tile.keys // A
    padded_rows = row_tiles * tile.queries
    written = launch(
        score_kernel,
        row_tiles * B * N,
        {
            "q_ptr": q_BTNH,
            "k_ptr": k_BSKH,
            "start_ptr": places.start_BQ.astype(jnp.int32),
            "needed_ptr": heads_BK.astype(jnp.int32),
            "items": B * N,
            "queries": T,
            "keys": S,
            "query_blocks": Q,
            "key_blocks": J,
            "log2_scale": H**-0.5 / spec.stride * math.log2(math.e),
        },
        {
            "sums_ptr": jax.ShapeDtypeStruct((B, N, padded_rows, key_tiles, per_tile), jnp.float32),
            "tops_ptr": jax.ShapeDtypeStruct((B, N, padded_rows, key_tiles), jnp.float32),
        },
        warps=tile.warps,
        stages=tile.stages,
        constants={
            "N": N,
            "K": K,
            "HEAD": H,
            "HEAD_PAD": head_pad,
            "GROUPS": A,
            "STRIDE": spec.stride,
            "ROWS": tile.queries,
            "COLUMNS": tile.keys,
            "ROUND": spec.compat,
        },
    )
    sums = written["sums_ptr"].reshape(B, N, padded_rows, -1)[:, :, : Q * A, :J].reshape(B, N, Q, A, J)
    tops = jnp.repeat(written["tops_ptr"], per_tile, axis=3)[:, :, : Q * A, :J].reshape(B, N, Q, A, J)
    block_J = jnp.arange(J)[None, None]
    seen_BQJ = (block_J >= places.start_BQ[..., None]) & (block_J <= places.diag_Q[None, :, None])
    # Elsewhere the kernel has written nothing.
    seen = (seen_BQJ[:, :, None] & places.live_BQA[..., None])[:, None]
    seen &= jnp.repeat(heads_BK, N // K, axis=1)[:, :, None, None, None]
    top = jnp.max(tops, axis=-1, keepdims=True, where=seen, initial=-1e30)
    weights = jnp.where(seen, sums * jnp.exp2(tops - top), 0.0)
    mass = jnp.sum(weights / jnp.maximum(weights.sum(-1, keepdims=True), 1e-30), axis=3)
    return mass.astype(q_BTNH.dtype).astype(jnp.float32) if spec.compat else mass
