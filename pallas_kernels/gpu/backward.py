"""Backward kernels of attention in Triton: one for dq, one for dk and dv. They skip what the forward kernel skips.

Weights are recomputed from the log-sum-exp. `inner` is the row sum of dO * O, less the gradient of the log-sum-exp. A
routed pair needs nothing else: its gradients in q, k and v are those of the chosen branch, whose plan is passed.
"""

# Kernels are Triton's language, not Python's:
# pyrefly: ignore-errors

import triton
import triton.language as tl

from pallas_kernels.gpu.forward import LOG2_E
from pallas_kernels.gpu.tiles import dot, key_tile_start, load_rows, offsets, query_tile, store_rows, visible


@triton.jit
def extend_dq(
    dq, q, d_out, lse_log2, inner, k_ptr, v_ptr, at, q_pos, limit, log2_scale,
    KEYS: tl.constexpr, STRIDE: tl.constexpr, HEAD: tl.constexpr, HEAD_PAD: tl.constexpr,
    EDGE: tl.constexpr, WINDOW: tl.constexpr,
):  # fmt: skip
    """Adds what one key tile gives to dq (before the scale)."""
    k_pos = at + tl.arange(0, KEYS)
    exist = None
    if EDGE:
        exist = k_pos < limit
    k = load_rows(k_ptr, at, exist, KEYS, STRIDE, HEAD, HEAD_PAD)
    v = load_rows(v_ptr, at, exist, KEYS, STRIDE, HEAD, HEAD_PAD)
    weights = tl.exp2(dot(q, tl.trans(k)) * log2_scale - lse_log2[:, None])
    if EDGE or WINDOW > 0:
        weights = tl.where(visible(q_pos[:, None], k_pos[None, :], EDGE, WINDOW), weights, 0.0)
    d_scores = weights * (dot(d_out, tl.trans(v)) - inner[:, None])
    return dot(d_scores.to(k.dtype), k, dq)


@triton.jit
def dq_kernel(
    q_ptr, k_ptr, v_ptr, d_out_ptr, lse_ptr, inner_ptr, runs_ptr, limit_ptr, order_ptr, blocks_ptr, count_ptr,
    queries, keys, query_blocks, key_blocks, scale,
    dq_ptr,
    N: tl.constexpr, K: tl.constexpr, HEAD: tl.constexpr, HEAD_PAD: tl.constexpr,
    BLOCK: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr, WINDOW: tl.constexpr, LISTED: tl.constexpr,
):  # fmt: skip
    """dq of one query tile; visits what `forward_kernel` visits."""
    row, head, query_block, at, limit, first, n_sink, lo, whole, edge, edge_end, blocks_ptr = query_tile(
        order_ptr, runs_ptr, limit_ptr, blocks_ptr, count_ptr, queries, keys, query_blocks, key_blocks,
        N, K, BLOCK, QUERIES, KEYS, LISTED,
    )  # fmt: skip
    first_row = keys - queries
    q_offset, k_offset, lse_offset = offsets(row, head, head // (N // K), queries, keys, N, K, HEAD)
    q_pos = at + tl.arange(0, QUERIES)
    k_ptr += k_offset
    v_ptr += k_offset

    there = (q_pos >= first_row) & (q_pos < limit)
    q = load_rows(q_ptr + q_offset, at - first_row, there, QUERIES, N * HEAD, HEAD, HEAD_PAD)
    d_out = load_rows(d_out_ptr + q_offset, at - first_row, there, QUERIES, N * HEAD, HEAD, HEAD_PAD)
    lse_log2 = tl.load(lse_ptr + lse_offset + q_pos, mask=there, other=0.0) * LOG2_E
    inner = tl.load(inner_ptr + lse_offset + q_pos, mask=there, other=0.0)
    log2_scale = scale * LOG2_E
    dq = tl.zeros([QUERIES, HEAD_PAD], tl.float32)
    for step in range(0, whole):
        k_at = key_tile_start(step, first, n_sink, lo, blocks_ptr, BLOCK, KEYS, LISTED)
        dq = extend_dq(
            dq, q, d_out, lse_log2, inner, k_ptr, v_ptr, k_at, q_pos, limit, log2_scale,
            KEYS, K * HEAD, HEAD, HEAD_PAD, False, WINDOW,
        )  # fmt: skip
    for step in range(edge, edge_end):
        dq = extend_dq(
            dq, q, d_out, lse_log2, inner, k_ptr, v_ptr, step * KEYS, q_pos, limit, log2_scale,
            KEYS, K * HEAD, HEAD, HEAD_PAD, True, WINDOW,
        )  # fmt: skip
    stored = (q_pos >= first_row) & (q_pos < keys)
    store_rows(dq_ptr + q_offset, at - first_row, stored, dq * scale, QUERIES, N * HEAD, HEAD, HEAD_PAD)


@triton.jit
def extend_dkv(
    dk, dv, k, v, q_ptr, d_out_ptr, lse_ptr, inner_ptr, at, k_pos, first_row, limit, log2_scale,
    QUERIES: tl.constexpr, STRIDE: tl.constexpr, HEAD: tl.constexpr, HEAD_PAD: tl.constexpr, WINDOW: tl.constexpr,
):  # fmt: skip
    """Adds what one query tile gives to dk (before the scale) and dv; tiles are transposed, keys by rows.

    Every tile is masked: a second loop for the tiles off the diagonal costs more registers than the masks cost time.
    """
    q_pos = at + tl.arange(0, QUERIES)
    there = (q_pos >= first_row) & (q_pos < limit)
    q = load_rows(q_ptr, at - first_row, there, QUERIES, STRIDE, HEAD, HEAD_PAD)
    lse_log2 = tl.load(lse_ptr + q_pos, mask=there, other=0.0) * LOG2_E
    weights = tl.exp2(dot(k, tl.trans(q)) * log2_scale - lse_log2[None, :])
    weights = tl.where(visible(q_pos[None, :], k_pos[:, None], True, WINDOW), weights, 0.0)
    d_out = load_rows(d_out_ptr, at - first_row, there, QUERIES, STRIDE, HEAD, HEAD_PAD)
    dv = dot(weights.to(d_out.dtype), d_out, dv)
    inner = tl.load(inner_ptr + q_pos, mask=there, other=0.0)
    d_scores = weights * (dot(v, tl.trans(d_out)) - inner[None, :])
    return dot(d_scores.to(q.dtype), q, dk), dv


@triton.jit
def dkv_kernel(
    q_ptr, k_ptr, v_ptr, d_out_ptr, lse_ptr, inner_ptr, stop_ptr, limit_ptr, order_ptr, blocks_ptr, count_ptr,
    queries, keys, query_blocks, key_blocks, scale,
    dk_ptr, dv_ptr,
    N: tl.constexpr, K: tl.constexpr, HEAD: tl.constexpr, HEAD_PAD: tl.constexpr,
    BLOCK: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr, WINDOW: tl.constexpr, LISTED: tl.constexpr,
):  # fmt: skip
    """dk and dv of one key tile: sums over the query blocks that visit it and over the query heads of the KV head."""
    GROUPS: tl.constexpr = N // K
    TILES: tl.constexpr = BLOCK // KEYS
    PER_BLOCK: tl.constexpr = BLOCK // QUERIES
    item = tl.load(order_ptr + tl.program_id(0) // TILES)
    tile = tl.program_id(0) % TILES
    kv_head = item % K
    block = (item // K) % key_blocks
    row = item // K // key_blocks
    first_query_block = key_blocks - query_blocks
    first_row = keys - queries

    limit = tl.load(limit_ptr + row * key_blocks + block)
    stop = tl.load(stop_ptr + (row * K + kv_head) * key_blocks + block)
    at = block * BLOCK + tile * KEYS
    k_pos = at + tl.arange(0, KEYS)
    q_offset, k_offset, lse_offset = offsets(row, kv_head * GROUPS, kv_head, queries, keys, N, K, HEAD)
    k = load_rows(k_ptr + k_offset, at, k_pos < limit, KEYS, K * HEAD, HEAD, HEAD_PAD)
    v = load_rows(v_ptr + k_offset, at, k_pos < limit, KEYS, K * HEAD, HEAD, HEAD_PAD)
    log2_scale = scale * LOG2_E
    dk = tl.zeros([KEYS, HEAD_PAD], tl.float32)
    dv = tl.zeros([KEYS, HEAD_PAD], tl.float32)
    for group in range(GROUPS):
        # From the tile that holds the first key of this one; a block list may name a few tiles before it.
        start = tl.maximum(at // QUERIES, first_query_block * PER_BLOCK)
        end = tl.where(at < limit, stop * PER_BLOCK, start)
        list_ptr = blocks_ptr
        if LISTED:
            listed = (row * N + kv_head * GROUPS + group) * key_blocks + block
            list_ptr += listed.to(tl.int64) * query_blocks
            start = 0
            end = tl.load(count_ptr + listed) * PER_BLOCK
        for step in range(start, end):
            q_at = step * QUERIES
            if LISTED:
                query_block = first_query_block + tl.load(list_ptr + step // PER_BLOCK).to(tl.int32)
                q_at = query_block * BLOCK + (step % PER_BLOCK) * QUERIES
            dk, dv = extend_dkv(
                dk, dv, k, v, q_ptr + q_offset, d_out_ptr + q_offset, lse_ptr + lse_offset, inner_ptr + lse_offset,
                q_at, k_pos, first_row, limit, log2_scale, QUERIES, N * HEAD, HEAD, HEAD_PAD, WINDOW,
            )  # fmt: skip
        q_offset += HEAD
        lse_offset += queries
    stored = k_pos < keys
    store_rows(dk_ptr + k_offset, at, stored, dk * scale, KEYS, K * HEAD, HEAD, HEAD_PAD)
    store_rows(dv_ptr + k_offset, at, stored, dv, KEYS, K * HEAD, HEAD, HEAD_PAD)
