"""Online softmax over key blocks in plain XLA: the inner loops of every attention op without a kernel of its own.

Work that the schedule leaves out is never started: trip counts are run-time values, and only tiles that some of their
rows may not see whole are masked. Matrix products take the input type and accumulate in float32.

Letters: Q query blocks, R = G * block rows of one query block, P = B * K * Q; a query tile has r query blocks.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from pallas_kernels.blocks import Geometry, RowLayout, by_query_block, clear_padding, fold_keys, fold_queries
from pallas_kernels.call import AttentionCall
from pallas_kernels.schedule import AttentionSpec, Schedule, block_schedule

MASKED = -1e30
NOTHING_SEEN = -1e29
"""Row maximum before any score; above MASKED, so that masked scores weigh nothing even before the first real one."""
KEY_TILE = 4
"""Key blocks of a wide tile. XLA's CPU matmuls need about 512 columns; 4 divides the published 16 local blocks."""
QUERY_TILE_ROWS = 1536
"""Most rows of a tile of several query blocks. More rows make better matmuls on several cores; more than 4 blocks would
make sparse heads visit too many that only some of the rows see."""

type Bounds = tuple[jax.Array, jax.Array]
"""Half-open range of key blocks, one for each row or for all."""


class Tiling(NamedTuple):
    """Static sizes of the loops."""

    query: int
    """Query blocks of a tile (r)."""
    key: int
    """Key blocks of a wide tile."""


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
        return cls(jnp.zeros((rows, head_dim)), jnp.full((rows,), NOTHING_SEEN), jnp.zeros((rows,)))

    def output(self) -> jax.Array:
        return self.acc_RH / jnp.maximum(self.sum_R, 1e-30)[:, None]

    def lse(self, scale: float) -> jax.Array:
        """Log of the sum of exp(scale * score); -inf for rows that saw nothing."""
        return jnp.where(self.sum_R > 1e-30, self.top_R * scale + jnp.log(jnp.maximum(self.sum_R, 1e-30)), -jnp.inf)


class Visits(NamedTuple):
    """What query blocks visit: the runs of their schedule, then key blocks named one by one for each query head."""

    runs: Schedule
    ends_BKQGJ: jax.Array | None
    """How many blocks of its list a query head has used up once key block j is passed; None without any list."""

    def only(self, chosen_BKQ: jax.Array) -> Visits:
        """The visits of the chosen query blocks; the others visit nothing."""
        runs, ends = self
        n_sink, lo = jnp.where(chosen_BKQ, runs.n_sink, 0), jnp.where(chosen_BKQ, runs.lo, runs.diag + 1)
        listed = None if ends is None else jnp.where(chosen_BKQ[..., None, None], ends, 0)
        return Visits(runs._replace(n_sink=n_sink, lo=lo), listed)


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


def fold(call: AttentionCall) -> tuple[Folded, RowLayout, Geometry, Tiling]:
    """Operands in whole tiles. Packed rows keep single query blocks, since segments end anywhere; so do short local
    windows, since a tile of r query blocks visits r - 1 blocks more than each of them needs."""
    geometry, spec = call.geometry, call.spec
    most = min(QUERY_TILE_ROWS // (call.groups * spec.block_size), geometry.query_blocks, 1 + spec.local_blocks // 4)
    most = 1 if call.segment_ids is not None else most
    r = max(blocks for blocks in (1, 2, 4) if blocks <= max(most, 1))
    tiling = Tiling(r, min(KEY_TILE, geometry.key_blocks))
    spare = tiling.key - 1
    geometry = geometry._replace(spare=spare + -(geometry.query_blocks + spare) % r)
    rows = call.rows(geometry)
    q, k, v = (clear_padding(x, rows.valid_BS) for x in (call.q_BTNH, call.k_BSKH, call.v_BSKH))
    folded = Folded(fold_queries(q, call.kv_heads, geometry), fold_keys(k, geometry), fold_keys(v, geometry))
    return folded, rows, geometry, tiling


def plan_visits(call: AttentionCall, sparse: jax.Array, rows: RowLayout, geometry: Geometry) -> Visits:
    """Visits of all query blocks; `sparse` is `[B, K]` or `[B, M, K]`.

    Query heads of one KV head may list different blocks. Each goes through its own list: a shared sweep over the union
    would visit blocks that a head does not list, and the more so the less the heads agree.
    """
    first = geometry.first_query_block
    sparse_BKQ = by_query_block(sparse, rows, geometry)
    start_BKQ = jnp.broadcast_to(rows.start_BJ[:, None, first:], sparse_BKQ.shape)
    diag_BKQ = jnp.broadcast_to(jnp.arange(first, geometry.key_blocks), sparse_BKQ.shape)
    runs = block_schedule(sparse_BKQ, start_BKQ, diag_BKQ, call.spec)
    if not call.has_masks:
        return Visits(runs, None)

    def spread(mask_BNIJ: jax.Array | None) -> jax.Array:
        """`[B, K, Q, G, J]`, with the blocks of padding; nothing for heads without a mask."""
        if mask_BNIJ is None:
            return jnp.zeros((1,) * 5, jnp.bool_)
        (B, K, Q), (N, queries, keys) = sparse_BKQ.shape, mask_BNIJ.shape[1:]
        mask = jnp.pad(mask_BNIJ, ((0, 0), (0, 0), (0, Q - queries), (0, geometry.key_blocks - keys)))
        return mask.reshape(B, K, N // K, Q, -1).swapaxes(2, 3)

    block_J = jnp.arange(geometry.key_blocks)[None, None, None]
    reachable = (block_J >= runs.first[..., None]) & (block_J <= runs.diag[..., None])
    mask = jnp.where(sparse_BKQ[..., None, None], spread(call.block_mask), spread(call.full_block_mask))
    ends = jnp.cumsum(mask & reachable[:, :, :, None], axis=-1, dtype=jnp.int32)
    listed = jnp.where(sparse_BKQ, call.block_mask is not None, call.full_block_mask is not None)
    n_sink, lo = jnp.where(listed, 0, runs.n_sink), jnp.where(listed, runs.diag + 1, runs.lo)
    return Visits(runs._replace(n_sink=n_sink, lo=lo), ends)


def key_tile(x_PSH: jax.Array, head: jax.Array, block: jax.Array, blocks: int, spec: AttentionSpec) -> jax.Array:
    """`blocks` blocks of the keys or values of one head."""
    size = (1, blocks * spec.block_size, x_PSH.shape[2])
    return lax.dynamic_slice(x_PSH, (head, block * spec.block_size, 0), size)[0]


def tile_mask(q_pos: jax.Array, k_pos: jax.Array, bounds: Bounds | None, spec: AttentionSpec) -> jax.Array:
    """Token-level mask inside a tile: causal, inside the window, key blocks inside the bounds."""
    mask = k_pos <= q_pos
    if bounds is not None:
        lower, upper = bounds
        mask &= (k_pos >= lower * spec.block_size) & (k_pos < upper * spec.block_size)
    if spec.window is not None:
        mask &= q_pos - k_pos < spec.window
    return mask


def traverse[C](
    bounds: Bounds,
    diag: jax.Array,
    blocks: int,
    spec: AttentionSpec,
    visit: Callable[[C, jax.Array, int, Bounds | None], C],
    carry: C,
) -> C:
    """Visits a run of key blocks in tiles of `blocks` blocks; bounds and `diag` are those of r query blocks, `[r]`.

    `visit(carry, first block, blocks, bounds)` masks its tile where bounds are given: always under a token window,
    otherwise only the tiles that some query block may not see whole.
    """
    lower, upper = bounds
    live, far = lower < upper, jnp.iinfo(jnp.int32).max
    start, end = jnp.where(live, lower, far).min(), jnp.where(live, upper, 0).max()
    whole_start = jnp.where(live, lower, 0).max()
    whole_end = jnp.where(live, jnp.minimum(upper, diag), far).min()

    def tiles(first, last):
        return jnp.maximum(last - first, 0) // blocks

    before = tiles(start, jnp.minimum(whole_start, end) + blocks - 1)
    whole = (
        0
        if spec.window is not None
        else jnp.where(live.all(), tiles(start + before * blocks, jnp.minimum(whole_end, end)), 0)
    )
    after = tiles(start + (before + whole) * blocks, end + blocks - 1)

    def visit_whole(t, carry):
        return visit(carry, start + (before + t) * blocks, blocks, None)

    def visit_edge(t, carry):
        return visit(carry, start + jnp.where(t < before, t, t + whole) * blocks, blocks, bounds)

    if spec.window is None:
        carry = lax.fori_loop(0, whole, visit_whole, carry)
    return lax.fori_loop(0, before + after, visit_edge, carry)


def traverse_schedule[C](
    plan: Schedule,
    tiling: Tiling,
    spec: AttentionSpec,
    visit: Callable[[C, jax.Array, int, Bounds | None], C],
    carry: C,
) -> C:
    """Visits the sinks one by one, then the local run with the diagonal; fields of `plan` are `[r]`."""
    carry = traverse((plan.first, plan.first + plan.n_sink), plan.diag, 1, spec, visit, carry)
    return traverse((plan.lo, plan.diag + 1), plan.diag, tiling.key, spec, visit, carry)


def list_tile(
    ends_J: jax.Array, tile: jax.Array, tiling: Tiling, spec: AttentionSpec
) -> tuple[list[jax.Array], jax.Array]:
    """Key blocks of a tile of a list, and the positions of their tokens; past the end of the list, out of sight."""
    entries = tile * tiling.key + jnp.arange(tiling.key)
    blocks = (ends_J[None] <= entries[:, None]).sum(1)
    k_pos = jnp.where(entries < ends_J[-1], blocks * spec.block_size, jnp.iinfo(jnp.int32).max - spec.block_size)
    k_pos = (k_pos[:, None] + jnp.arange(spec.block_size)[None]).reshape(-1)
    return list(jnp.minimum(blocks, ends_J.shape[0] - 1)), k_pos


def list_tiles(ends_J: jax.Array, tiling: Tiling) -> jax.Array:
    """Tiles of a list."""
    return (ends_J[-1] + tiling.key - 1) // tiling.key


def gather_keys(x_PSH: jax.Array, head: jax.Array, blocks: list[jax.Array], spec: AttentionSpec) -> jax.Array:
    """The listed blocks of the keys or values of one head."""
    return jnp.concatenate([key_tile(x_PSH, head, block, 1, spec) for block in blocks])


def query_tiles[X](x: X, tiling: Tiling) -> X:
    """`[B, K, Q, ...]` leaves -> `[tiles, r, ...]`."""
    return jax.tree.map(lambda leaf: leaf.reshape(-1, tiling.query, *leaf.shape[3:]), x)


def over_rows(x_r: jax.Array, rows: int) -> jax.Array:
    """Spreads a value of each query block over its rows."""
    return jnp.repeat(x_r, rows // x_r.shape[0])


def row_positions(diag_r: jax.Array, rows: int, spec: AttentionSpec) -> jax.Array:
    """Position of each row of a query tile."""
    offsets = jnp.tile(jnp.arange(spec.block_size), rows // spec.block_size)
    return over_rows(diag_r, rows) * spec.block_size + offsets


def attend[O](
    operands: Folded,
    visits: Visits,
    spec: AttentionSpec,
    tiling: Tiling,
    collect: Callable[[jax.Array, Softmax, Schedule, Extend], O],
) -> O:
    """Sweeps every query tile over its visits; a leaf of the result is `[B, K, Q, R, ...]`.

    `collect(tile, state, plan, extend)` turns the softmax of a query tile into what is kept of each row;
    `extend(state, lower, upper)` goes on over more key blocks, bounds `[r]`.
    """
    B, K, Q, R, H = operands.q_BKQRH.shape
    k_PSH, v_PSH = (x.reshape(B * K, -1, H) for x in operands[1:])
    log2_scale = spec.scale * float(np.log2(np.e))
    rows = tiling.query * R

    def update(state, q_RH, k_SH, v_SH, mask):
        scores = dot(q_RH, k_SH, (1, 1))
        if mask is not None:
            scores = jnp.where(mask, scores, MASKED)
        top = jnp.maximum(state.top_R, scores.max(1))
        # The barrier keeps XLA from computing the weights twice, once for the sum and once for the product.
        weights = lax.optimization_barrier(exp2((scores - top[:, None]) * log2_scale))
        decay = exp2((state.top_R - top) * log2_scale)
        out = dot(weights.astype(v_SH.dtype), v_SH, (1, 0))
        return Softmax(state.acc_RH * decay[:, None] + out, top, state.sum_R * decay + weights.sum(1))

    def follow_list(head, q_RH, diag, ends_J):
        q_pos = row_positions(diag[None], q_RH.shape[0], spec)[:, None]

        def visit(tile, state):
            blocks, k_pos = list_tile(ends_J, tile, tiling, spec)
            k_SH, v_SH = (gather_keys(x, head, blocks, spec) for x in (k_PSH, v_PSH))
            return update(state, q_RH, k_SH, v_SH, tile_mask(q_pos, k_pos[None], None, spec))

        return lax.fori_loop(0, list_tiles(ends_J, tiling), visit, Softmax.empty(*q_RH.shape))

    def query_tile(item):
        index, q_rRH, (plan, ends_rGJ) = item
        q_RH = q_rRH.reshape(rows, H)
        head = index * tiling.query // Q
        q_pos = row_positions(plan.diag, rows, spec)

        def visit(state, start, blocks, bounds):
            k_SH, v_SH = (key_tile(x, head, start, blocks, spec) for x in (k_PSH, v_PSH))
            if bounds is None:
                return update(state, q_RH, k_SH, v_SH, None)
            k_pos = start * spec.block_size + jnp.arange(blocks * spec.block_size)
            lower, upper = (over_rows(x, rows)[:, None] for x in bounds)
            return update(state, q_RH, k_SH, v_SH, tile_mask(q_pos[:, None], k_pos[None], (lower, upper), spec))

        def extend(state, lower, upper):
            return traverse((lower, upper), plan.diag, tiling.key, spec, visit, state)

        state = Softmax.empty(rows, H)
        if ends_rGJ is not None:
            pairs = rows // spec.block_size
            items = (q_RH.reshape(pairs, -1, H), over_rows(plan.diag, pairs), ends_rGJ.reshape(pairs, -1))
            lists = lax.map(lambda item: follow_list(head, *item), items)
            state = jax.tree.map(lambda x: x.reshape(rows, *x.shape[2:]), lists)
        return collect(index, traverse_schedule(plan, tiling, spec, visit, state), plan, extend)

    q_tiles, visit_tiles = query_tiles((operands.q_BKQRH, visits), tiling)
    kept = lax.map(query_tile, (jnp.arange(q_tiles.shape[0]), q_tiles, visit_tiles))
    return jax.tree.map(lambda x: x.reshape(B, K, Q, R, *x.shape[2:]), kept)
