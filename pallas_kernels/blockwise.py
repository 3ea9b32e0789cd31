"""Online softmax over key blocks in plain XLA: the inner loops of every attention op without a kernel of its own.

Work that the schedule leaves out is never started: trip counts are run-time values, and only the tile at the end of a
run is masked. Matrix products take the input type and accumulate in float32.

Letters: Q query blocks, R = G * block rows of one query block, P = B * K * Q.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from pallas_kernels.layout import Geometry, Rows, by_block, clear_padding, describe_rows, fold_keys, fold_queries
from pallas_kernels.schedule import AttentionSpec, Schedule, block_schedule

MASKED = -1e30
TILE_BLOCKS = 4
"""Key blocks of a wide tile. XLA's CPU matmuls need about 512 columns; 4 divides the published 16 local blocks."""

type Bounds = tuple[jax.Array, jax.Array]
"""Half-open range of key blocks."""


class Folded(NamedTuple):
    """Operands in whole blocks."""

    q_BKQRH: jax.Array
    k_BKSH: jax.Array
    v_BKSH: jax.Array


class Softmax(NamedTuple):
    """Running state of one query block: unnormalised output, row maxima of the raw scores, row sums."""

    acc_RH: jax.Array
    top_R: jax.Array
    sum_R: jax.Array

    @classmethod
    def empty(cls, rows: int, head_dim: int) -> Softmax:
        return cls(jnp.zeros((rows, head_dim)), jnp.full((rows,), MASKED), jnp.zeros((rows,)))

    def output(self) -> jax.Array:
        return self.acc_RH / jnp.maximum(self.sum_R, 1e-30)[:, None]

    def lse(self, scale: float) -> jax.Array:
        """Log of the sum of exp(scale * score); 0 for rows that saw nothing."""
        return jnp.where(self.sum_R > 0, self.top_R * scale + jnp.log(jnp.maximum(self.sum_R, 1e-30)), 0.0)


type Extend = Callable[[Softmax, jax.Array, jax.Array], Softmax]


def exp2(x: jax.Array) -> jax.Array:
    """2**x for x <= 0, relative error 2e-7 (2**-126 below that): three times as fast as XLA's own on CPU.

    Degree-5 least-squares fit of 2**f on [-0.5, 0.5]; the integer part goes straight into the exponent bits.
    """
    round_to_integer = 1.5 * 2.0**23
    x = jnp.maximum(x, -126.0)
    bits = lax.bitcast_convert_type(x + round_to_integer, jnp.int32)
    whole = bits - int(np.float32(round_to_integer).view(np.int32))
    f = x - whole.astype(jnp.float32)
    power = 0.0013267
    for coefficient in (0.00967546, 0.05550743, 0.24022122, 0.69314695, 1.00000007):
        power = power * f + coefficient
    return lax.bitcast_convert_type(lax.bitcast_convert_type(power, jnp.int32) + (whole << 23), jnp.float32)


def dot(a: jax.Array, b: jax.Array, contract: tuple[int, int]) -> jax.Array:
    """Product accumulated in float32, at the caller's `jax.default_matmul_precision`."""
    return lax.dot_general(a, b, (((contract[0],), (contract[1],)), ((), ())), preferred_element_type=jnp.float32)


def fold(
    q_BTNH: jax.Array,
    k_BSKH: jax.Array,
    v_BSKH: jax.Array,
    spec: AttentionSpec,
    lengths: jax.Array | None,
    segment_ids: jax.Array | None,
) -> tuple[Folded, Rows, Geometry]:
    geometry = Geometry(spec.block_size, q_BTNH.shape[1], k_BSKH.shape[1])
    rows = describe_rows(q_BTNH.shape[0], geometry, lengths, segment_ids)
    q, k, v = (clear_padding(x, rows.valid_BS) for x in (q_BTNH, k_BSKH, v_BSKH))
    folded = Folded(fold_queries(q, k.shape[2], geometry), fold_keys(k, geometry), fold_keys(v, geometry))
    return folded, rows, geometry


def query_schedule(sparse: jax.Array, rows: Rows, spec: AttentionSpec, geometry: Geometry) -> Schedule:
    """Schedules of all query blocks, each field `[B, K, Q]`; `sparse` is `[B, K]` or `[B, M, K]`."""
    first = geometry.first_query_block
    sparse_BKQ = by_block(sparse, rows)[:, :, first:]
    start_BKQ = jnp.broadcast_to(rows.start_BJ[:, None, first:], sparse_BKQ.shape)
    diag_BKQ = jnp.broadcast_to(jnp.arange(first, geometry.key_blocks), sparse_BKQ.shape)
    return block_schedule(sparse_BKQ, start_BKQ, diag_BKQ, spec)


def tile_blocks(keys: int, spec: AttentionSpec) -> int:
    return min(TILE_BLOCKS, keys // spec.block_size)


def key_tile(x_PSH: jax.Array, head: jax.Array, block: jax.Array, blocks: int, spec: AttentionSpec) -> jax.Array:
    """`blocks` blocks of the keys or values of one head."""
    size = (1, blocks * spec.block_size, x_PSH.shape[2])
    return lax.dynamic_slice(x_PSH, (head, block * spec.block_size, 0), size)[0]


def visible(q_pos: jax.Array, k_pos: jax.Array, bounds: Bounds, spec: AttentionSpec) -> jax.Array:
    """Token-level mask inside a tile: causal, inside the window, key blocks inside the bounds."""
    lower, upper = bounds
    mask = (k_pos <= q_pos) & (k_pos >= lower * spec.block_size) & (k_pos < upper * spec.block_size)
    if spec.window is not None:
        mask &= q_pos - k_pos < spec.window
    return mask


def traverse[C](
    lower: jax.Array,
    upper: jax.Array,
    blocks: int,
    spec: AttentionSpec,
    visit: Callable[[C, jax.Array, int, Bounds | None], C],
    carry: C,
) -> C:
    """Visits the key blocks `[lower, upper)` in tiles of `blocks` blocks.

    `visit(carry, first block, blocks, bounds)` masks its tile where bounds are given: always under a token window,
    otherwise only the last tile, which may reach below `lower` or hold the diagonal.
    """
    whole_tiles = jnp.maximum(upper - 1 - lower, 0) // blocks

    def whole(t, carry):
        start = lower + t * blocks
        return visit(carry, start, blocks, None if spec.window is None else (start, start + blocks))

    def rest(_, carry):
        return visit(carry, jnp.maximum(upper - blocks, 0), blocks, (lower + whole_tiles * blocks, upper))

    carry = lax.fori_loop(0, whole_tiles, whole, carry)
    return lax.fori_loop(0, (upper > lower).astype(jnp.int32), rest, carry)


def traverse_schedule[C](
    plan: Schedule,
    blocks: int,
    spec: AttentionSpec,
    visit: Callable[[C, jax.Array, int, Bounds | None], C],
    carry: C,
) -> C:
    """Visits the sinks one by one, then the local run with the diagonal."""

    def sink(t, carry):
        start = plan.first + t
        return visit(carry, start, 1, None if spec.window is None else (start, start + 1))

    carry = lax.fori_loop(0, plan.n_sink, sink, carry)
    return traverse(plan.lo, plan.diag + 1, blocks, spec, visit, carry)


def attend[O](
    operands: Folded,
    plan: Schedule,
    spec: AttentionSpec,
    collect: Callable[[jax.Array, Softmax, Schedule, Extend], O],
) -> O:
    """Sweeps every query block over its schedule; a leaf of the result has leading axes `[B, K, Q]`.

    `collect(index, state, plan, extend)` turns the softmax of query block `index` (of P) into what is kept;
    `extend(state, lower, upper)` goes on over more key blocks.
    """
    B, K, Q, R, H = operands.q_BKQRH.shape
    k_PSH, v_PSH = (x.reshape(B * K, -1, H) for x in operands[1:])
    blocks = tile_blocks(k_PSH.shape[1], spec)
    log2_scale = spec.scale * float(np.log2(np.e))

    def query_block(item):
        index, q_RH, plan = item
        head = index // Q
        q_pos = plan.diag * spec.block_size + jnp.tile(jnp.arange(spec.block_size), R // spec.block_size)

        def visit(state, start, blocks, bounds):
            k_SH, v_SH = (key_tile(x, head, start, blocks, spec) for x in (k_PSH, v_PSH))
            scores = dot(q_RH, k_SH, (1, 1))
            if bounds is not None:
                k_pos = start * spec.block_size + jnp.arange(blocks * spec.block_size)
                scores = jnp.where(visible(q_pos[:, None], k_pos, bounds, spec), scores, MASKED)
            top = jnp.maximum(state.top_R, scores.max(1))
            # The barrier keeps XLA from computing the weights twice, once for the sum and once for the product.
            weights = lax.optimization_barrier(exp2((scores - top[:, None]) * log2_scale))
            decay = exp2((state.top_R - top) * log2_scale)
            out = dot(weights.astype(v_SH.dtype), v_SH, (1, 0))
            return Softmax(state.acc_RH * decay[:, None] + out, top, state.sum_R * decay + weights.sum(1))

        def extend(state, lower, upper):
            return traverse(lower, upper, blocks, spec, visit, state)

        state = traverse_schedule(plan, blocks, spec, visit, Softmax.empty(R, H))
        return collect(index, state, plan, extend)

    flat_plan = Schedule(*(x.reshape(-1) for x in plan))
    kept = lax.map(query_block, (jnp.arange(B * K * Q), operands.q_BKQRH.reshape(-1, R, H), flat_plan))
    return jax.tree.map(lambda x: x.reshape(B, K, Q, *x.shape[1:]), kept)
