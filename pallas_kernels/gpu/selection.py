"""Scoring kernel of block selection in Triton: antidiagonal sums, and what they weigh in each block of keys."""

# Kernels are Triton's language, not Python's:
# pyrefly: ignore-errors

import triton
import triton.language as tl

from pallas_kernels.gpu.tiles import MASKED, dot, load_rows


@triton.jit
def score_kernel(
    q_ptr, k_ptr, start_ptr, needed_ptr,
    items, queries, keys, query_blocks, key_blocks, log2_scale,
    sums_ptr, tops_ptr,
    N: tl.constexpr, K: tl.constexpr, HEAD: tl.constexpr, HEAD_PAD: tl.constexpr, GROUPS: tl.constexpr,
    STRIDE: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, ROUND: tl.constexpr,
):  # fmt: skip
    """One program scores ROWS groups of STRIDE queries of one head against all groups of keys before them.

    Of each tile of COLUMNS groups of keys it writes the largest score of every row (`tops`), and the sums over key
    blocks (GROUPS groups each) of 2 ** (score - largest) (`sums`). ROUND rounds scores to the type of q.
    """
    tiles = tl.cdiv(query_blocks * GROUPS, ROWS)
    # The last rows see most keys, so they start first.
    tile = tiles - 1 - tl.program_id(0) // items
    item = tl.program_id(0) % items
    head = item % N
    batch_row = (item // N).to(tl.int64)
    kv_head = head // (N // K)
    row = tile * ROWS + tl.arange(0, ROWS)
    group = (key_blocks - query_blocks) * GROUPS + row
    block = tl.minimum(row // GROUPS, query_blocks - 1)
    start = tl.load(start_ptr + batch_row * query_blocks + block) * GROUPS
    first = (key_blocks - query_blocks) * GROUPS + tile * ROWS
    end = tl.cdiv(tl.minimum(first + ROWS, key_blocks * GROUPS), COLUMNS)
    end = tl.where(tl.load(needed_ptr + batch_row * K + kv_head) != 0, end, 0)
    first_row = (keys - queries).to(tl.int64)
    q_ptr += ((batch_row * queries - first_row) * N + head) * HEAD
    k_ptr += (batch_row * keys * K + kv_head) * HEAD
    key_tiles = tl.cdiv(key_blocks * GROUPS, COLUMNS)
    out = (item.to(tl.int64) * tiles * ROWS + row) * key_tiles
    for step in range(tl.min(start, 0) // COLUMNS, end):
        column = step * COLUMNS + tl.arange(0, COLUMNS)
        scores = tl.zeros([ROWS, COLUMNS], tl.float32)
        for token in range(STRIDE):
            q_pos = group * STRIDE + (STRIDE - 1 - token)
            q = load_rows(
                q_ptr + (STRIDE - 1 - token) * N * HEAD, first, (q_pos >= first_row) & (q_pos < keys),
                ROWS, STRIDE * N * HEAD, HEAD, HEAD_PAD,
            )  # fmt: skip
            k = load_rows(
                k_ptr + token * K * HEAD, step * COLUMNS, column * STRIDE + token < keys,
                COLUMNS, STRIDE * K * HEAD, HEAD, HEAD_PAD,
            )  # fmt: skip
            scores = dot(q, tl.trans(k), scores)
        if ROUND:
            scores = scores.to(q_ptr.dtype.element_ty).to(tl.float32)
        seen = (column[None, :] <= group[:, None]) & (column[None, :] >= start[:, None])
        scores = tl.where(seen, scores * log2_scale, MASKED)
        top = tl.max(scores, 1)
        weights = tl.where(seen, tl.exp2(scores - top[:, None]), 0.0)
        sums = tl.sum(tl.reshape(weights, [ROWS, COLUMNS // GROUPS, GROUPS]), 2)
        place = (out + step)[:, None] * (COLUMNS // GROUPS) + tl.arange(0, COLUMNS // GROUPS)[None, :]
        tl.store(sums_ptr + place, sums)
        tl.store(tops_ptr + out + step, top)
