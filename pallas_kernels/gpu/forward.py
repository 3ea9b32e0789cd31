"""Forward kernel of hybrid and of dual attention in Triton: one program for a tile of queries of one head.

Keys and values are loaded where they lie, `[B, S, K, H]`, by the index of the KV head. Programs start in the order
that the plan gives, most key blocks first, so that the last ones to run are the short ones.
"""

# Kernels are Triton's language, not Python's:
# pyrefly: ignore-errors

import triton
import triton.language as tl

from pallas_kernels.gpu.tiles import MASKED, dot, key_tile_start, load_rows, offsets, query_tile, store_rows, visible

LOG2_E = tl.constexpr(1.4426950408889634)
LN_2 = tl.constexpr(0.6931471805599453)


@triton.jit
def extend(
    acc, top, total, q, k_ptr, v_ptr, at, q_pos, limit, log2_scale,
    KEYS: tl.constexpr, STRIDE: tl.constexpr, HEAD: tl.constexpr, HEAD_PAD: tl.constexpr,
    EDGE: tl.constexpr, WINDOW: tl.constexpr,
):  # fmt: skip
    """Online softmax over one more key tile; an EDGE tile holds the diagonal and maybe padding."""
    k_pos = at + tl.arange(0, KEYS)
    exist = None
    if EDGE:
        exist = k_pos < limit
    k = load_rows(k_ptr, at, exist, KEYS, STRIDE, HEAD, HEAD_PAD)
    scores = dot(q, tl.trans(k))
    if EDGE or WINDOW > 0:
        scores = tl.where(visible(q_pos[:, None], k_pos[None, :], EDGE, WINDOW), scores, MASKED)
    new_top = tl.maximum(top, tl.max(scores, 1))
    weights = tl.exp2(scores * log2_scale - (new_top * log2_scale)[:, None])
    decay = tl.exp2((top - new_top) * log2_scale)
    v = load_rows(v_ptr, at, exist, KEYS, STRIDE, HEAD, HEAD_PAD)
    acc = dot(weights.to(v.dtype), v, acc * decay[:, None])
    return acc, new_top, total * decay + tl.sum(weights, 1)


@triton.jit
def write(
    out_ptr, lse_ptr, acc, top, total, q_pos, at, first_row, keys, limit, log2_scale,
    QUERIES: tl.constexpr, STRIDE: tl.constexpr, HEAD: tl.constexpr, HEAD_PAD: tl.constexpr,
):  # fmt: skip
    """Normalised output and natural log-sum-exp; 0 and -inf for rows that are padding or saw nothing."""
    seen = (top > 0.1 * MASKED) & (q_pos < limit)
    total = tl.where(seen, total, 1.0)
    stored = (q_pos >= first_row) & (q_pos < keys)
    out = tl.where(seen[:, None], acc / total[:, None], 0.0)
    store_rows(out_ptr, at - first_row, stored, out, QUERIES, STRIDE, HEAD, HEAD_PAD)
    lse = tl.where(seen, (top * log2_scale + tl.log2(total)) * LN_2, float("-inf"))
    tl.store(lse_ptr + q_pos, lse, mask=stored)


@triton.jit
def forward_kernel(
    q_ptr, k_ptr, v_ptr, runs_ptr, limit_ptr, order_ptr, blocks_ptr, count_ptr, full_ptr,
    queries, keys, query_blocks, key_blocks, scale,
    out_ptr, lse_ptr, other_ptr, other_lse_ptr,
    N: tl.constexpr, K: tl.constexpr, HEAD: tl.constexpr, HEAD_PAD: tl.constexpr,
    BLOCK: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr, WINDOW: tl.constexpr,
    LISTED: tl.constexpr, PAIR: tl.constexpr,
):  # fmt: skip
    """Attention of one query tile to the key blocks of its plan.

    PAIR sweeps sinks, local run and diagonal first and writes what that gives, then goes on over the middle and writes
    the full result: of the two, the chosen one goes to `out`, the remaining one to `other`.
    """
    PER_BLOCK: tl.constexpr = BLOCK // KEYS
    row, head, query_block, at, limit, first, n_sink, lo, whole, edge, edge_end, blocks_ptr = query_tile(
        order_ptr, runs_ptr, limit_ptr, blocks_ptr, count_ptr, queries, keys, query_blocks, key_blocks,
        N, K, BLOCK, QUERIES, KEYS, LISTED,
    )  # fmt: skip
    first_row = keys - queries
    kv_head = head // (N // K)
    q_offset, k_offset, lse_offset = offsets(row, head, kv_head, queries, keys, N, K, HEAD)
    q_pos = at + tl.arange(0, QUERIES)
    k_ptr += k_offset
    v_ptr += k_offset

    q = load_rows(
        q_ptr + q_offset, at - first_row, (q_pos >= first_row) & (q_pos < limit), QUERIES, N * HEAD, HEAD, HEAD_PAD
    )
    log2_scale = scale * LOG2_E
    acc = tl.zeros([QUERIES, HEAD_PAD], tl.float32)
    # Above MASKED: a tile that a row sees nothing of weighs 0, even where the compiler fuses the subtraction below.
    top = tl.full([QUERIES], 0.1 * MASKED, tl.float32)
    total = tl.zeros([QUERIES], tl.float32)
    for step in range(0, whole):
        k_at = key_tile_start(step, first, n_sink, lo, blocks_ptr, BLOCK, KEYS, LISTED)
        acc, top, total = extend(
            acc, top, total, q, k_ptr, v_ptr, k_at, q_pos, limit, log2_scale,
            KEYS, K * HEAD, HEAD, HEAD_PAD, False, WINDOW,
        )  # fmt: skip
    for step in range(edge, edge_end):
        acc, top, total = extend(
            acc, top, total, q, k_ptr, v_ptr, step * KEYS, q_pos, limit, log2_scale,
            KEYS, K * HEAD, HEAD, HEAD_PAD, True, WINDOW,
        )  # fmt: skip
    out_ptr += q_offset
    lse_ptr += lse_offset
    if PAIR:
        other_ptr += q_offset
        other_lse_ptr += lse_offset
        full = tl.load(full_ptr + (row * K + kv_head) * query_blocks + query_block)
        # Branches rather than a selected pointer: the compiler must still see that the address is aligned.
        if full != 0:
            write(
                other_ptr, other_lse_ptr, acc, top, total, q_pos, at, first_row, keys, limit, log2_scale,
                QUERIES, N * HEAD, HEAD, HEAD_PAD,
            )  # fmt: skip
        else:
            write(
                out_ptr, lse_ptr, acc, top, total, q_pos, at, first_row, keys, limit, log2_scale,
                QUERIES, N * HEAD, HEAD, HEAD_PAD,
            )  # fmt: skip
        middle = tl.where(edge_end > edge, (lo - first - n_sink) * PER_BLOCK, 0)
        for step in range(0, middle):
            k_at = ((first + n_sink) * PER_BLOCK + step) * KEYS
            acc, top, total = extend(
                acc, top, total, q, k_ptr, v_ptr, k_at, q_pos, limit, log2_scale,
                KEYS, K * HEAD, HEAD, HEAD_PAD, False, WINDOW,
            )  # fmt: skip
        if full != 0:
            write(
                out_ptr, lse_ptr, acc, top, total, q_pos, at, first_row, keys, limit, log2_scale,
                QUERIES, N * HEAD, HEAD, HEAD_PAD,
            )  # fmt: skip
        else:
            write(
                other_ptr, other_lse_ptr, acc, top, total, q_pos, at, first_row, keys, limit, log2_scale,
                QUERIES, N * HEAD, HEAD, HEAD_PAD,
            )  # fmt: skip
    else:
        write(
            out_ptr, lse_ptr, acc, top, total, q_pos, at, first_row, keys, limit, log2_scale,
            QUERIES, N * HEAD, HEAD, HEAD_PAD,
        )  # fmt: skip
