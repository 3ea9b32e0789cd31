"""XAttention (arXiv 2503.16428): the attention that key blocks get by antidiagonal sums, and the choice of blocks."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from pallas_kernels.blocks import Geometry, clear_padding, describe_rows, fold_keys, fold_queries


def keep_blocks(
    mass: jax.Array, start: jax.Array, diag: jax.Array, threshold: float, first_chunk: jax.Array | None = None
) -> jax.Array:
    """The fewest blocks whose mass reaches `threshold` of a query block's total, the first and the last one included.

    Args:
        mass: float `[..., J]`, attention that each key block gets; 0 outside `[start, diag]`.
        start: `[...]`, first key block of the sequence, always kept.
        diag: `[...]`, the query block's own position, always kept. Nothing is kept where it lies before `start`.
        threshold: share of the mass to keep.
        first_chunk: `[...]`, where the released code keeps a block more: it takes both ends of the range as given but
            counts only one of them, and looks at what was taken one block late.

    Returns:
        bool `[..., J]`.
    """
    block_J = jnp.expand_dims(jnp.arange(mass.shape[-1]), tuple(range(mass.ndim - 1)))
    start, diag = (jnp.broadcast_to(x, mass.shape[:-1])[..., None] for x in (start, diag))
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


class SelectionSpec(NamedTuple):
    """Static parameters of a selection."""

    threshold: float
    stride: int
    block_size: int
    compat: bool


class Places(NamedTuple):
    """Where the groups of queries lie; A groups make a block."""

    live_BQA: jax.Array
    """Groups that hold a query."""
    start_BQ: jax.Array
    """First key block of the query block's segment."""
    diag_Q: jax.Array
    first_chunk_BQ: jax.Array | None
    """Query blocks that the released code treats differently; None for our rule."""


def make_places(
    q_BTNH: jax.Array,
    k_BSKH: jax.Array,
    spec: SelectionSpec,
    lengths: jax.Array | None,
    segment_ids: jax.Array | None,
) -> tuple[jax.Array, jax.Array, Places, Geometry]:
    """Operands with zeros for padding, and how their rows lie."""
    geometry = Geometry(spec.block_size, q_BTNH.shape[1], k_BSKH.shape[1])
    B, J, first = q_BTNH.shape[0], geometry.key_blocks, geometry.first_query_block
    rows = describe_rows(B, geometry, lengths, segment_ids)
    valid_BS = jnp.ones((B, geometry.keys), jnp.bool_) if rows.valid_BS is None else rows.valid_BS
    valid_BJs = jnp.pad(valid_BS, ((0, 0), (0, geometry.right))).reshape(B, J, spec.block_size)
    positions = jnp.arange(J * spec.block_size).reshape(J, spec.block_size)
    queries_BQs = (valid_BJs & (positions >= geometry.keys - geometry.queries)[None])[:, first:]
    live_BQA = queries_BQs.reshape(B, J - first, -1, spec.stride).any(-1)
    start_BQ, diag_Q = rows.start_BJ[:, first:], jnp.arange(first, J)
    first_chunk = None
    if spec.compat:
        same_BQJ = rows.segment_BJ[:, first:, None] == rows.segment_BJ[:, None]
        length_BQ = jnp.einsum("bqj,bj->bq", same_BQJ.astype(jnp.int32), valid_BJs.sum(-1))
        first_chunk = (diag_Q[None] - start_BQ) * spec.block_size < first_chunk_tokens(length_BQ)
    places = Places(live_BQA, start_BQ, diag_Q, first_chunk)
    return clear_padding(q_BTNH, rows.valid_BS), clear_padding(k_BSKH, rows.valid_BS), places, geometry


def make_groups(
    q_BTNH: jax.Array,
    k_BSKH: jax.Array,
    spec: SelectionSpec,
    lengths: jax.Array | None,
    segment_ids: jax.Array | None,
) -> tuple[jax.Array, jax.Array, Places, Geometry]:
    """Operands `[B, N, Q, A, D]` and `[B, K, J, A, D]` with `stride` tokens joined into one group, D = stride * H.

    Tokens of a group of queries are in reverse order, so that the product with a group of keys sums an antidiagonal.
    """
    (B, _, N, H), K = q_BTNH.shape, k_BSKH.shape[2]
    q, k, places, geometry = make_places(q_BTNH, k_BSKH, spec, lengths, segment_ids)
    Q, J, A = geometry.query_blocks, geometry.key_blocks, spec.block_size // spec.stride
    q = fold_queries(q, N, geometry).reshape(B, N, Q, A, spec.stride, H)[..., ::-1, :]
    k = fold_keys(k, geometry)
    return q.reshape(B, N, Q, A, -1), k.reshape(B, K, J, A, spec.stride * H), places, geometry


def block_mass(
    q_QAD: jax.Array, k_JAD: jax.Array, live_QA: jax.Array, start_Q: jax.Array, diag_Q: jax.Array, spec: SelectionSpec
) -> jax.Array:
    """Softmax over groups of keys, summed over blocks: float32 `[Q, J]`, the rows of one head."""
    (A, D), J = q_QAD.shape[1:], k_JAD.shape[0]
    scores = jnp.einsum("qad,jcd->qajc", q_QAD, k_JAD, preferred_element_type=jnp.float32)
    if spec.compat:
        scores = scores.astype(q_QAD.dtype).astype(jnp.float32)
    head_dim = D // spec.stride
    scores = scores * (head_dim**-0.5 / spec.stride)
    group_QA, group_JA = (block[:, None] * A + jnp.arange(A)[None] for block in (diag_Q, jnp.arange(J)))
    seen = group_JA[None, None] <= group_QA[:, :, None, None]
    seen &= group_JA[None, None] >= start_Q[:, None, None, None] * A
    scores = jnp.where(seen & live_QA[:, :, None, None], scores, -jnp.inf)
    top = scores.max((2, 3), keepdims=True)
    weights = jnp.exp(scores - jnp.where(jnp.isfinite(top), top, 0.0))
    weights = weights / jnp.maximum(weights.sum((2, 3), keepdims=True), 1e-30)
    mass = weights.sum((1, 3))
    return mass.astype(q_QAD.dtype).astype(jnp.float32) if spec.compat else mass
