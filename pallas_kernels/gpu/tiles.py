"""Pieces that every Triton attention kernel uses: loads and stores of rows, token masks, scores.

A kernel names its sizes by constants: HEAD is the head dim, HEAD_PAD the power of two that holds it, QUERIES and KEYS
the rows of a query and a key tile, STRIDE the elements from one token of an array to the next. Positions are those of
the keys; a query row is stored at its position less `shift`, as queries are the last positions.
"""

import triton
import triton.language as tl

MASKED = tl.constexpr(-1.0e30)


@triton.jit
def load_rows(ptr, at, exist, ROWS: tl.constexpr, STRIDE: tl.constexpr, HEAD: tl.constexpr, HEAD_PAD: tl.constexpr):
    """Rows `at`, `at + 1`, ... as `[ROWS, HEAD_PAD]`; zeros where `exist` (None: everywhere true) says no."""
    dims = tl.arange(0, HEAD_PAD)[None, :]
    ptrs = ptr + tl.cast(at, tl.int64) * STRIDE + (tl.arange(0, ROWS)[:, None] * STRIDE + dims)
    if exist is None:
        if HEAD == HEAD_PAD:
            rows = tl.load(ptrs)
        else:
            rows = tl.load(ptrs, mask=dims < HEAD, other=0.0)
    else:
        if HEAD == HEAD_PAD:
            rows = tl.load(ptrs, mask=exist[:, None], other=0.0)
        else:
            rows = tl.load(ptrs, mask=exist[:, None] & (dims < HEAD), other=0.0)
    return rows


@triton.jit
def store_rows(ptr, at, exist, x, ROWS: tl.constexpr, STRIDE: tl.constexpr, HEAD: tl.constexpr, HEAD_PAD: tl.constexpr):
    """Inverse of `load_rows`, in the type of the array."""
    dims = tl.arange(0, HEAD_PAD)[None, :]
    ptrs = ptr + tl.cast(at, tl.int64) * STRIDE + (tl.arange(0, ROWS)[:, None] * STRIDE + dims)
    tl.store(ptrs, x.to(ptr.dtype.element_ty), mask=exist[:, None] & (dims < HEAD))


@triton.jit
def dot(a, b, acc=None):
    """Matrix product accumulated in float32; float32 operands are not rounded to TF32."""
    return tl.dot(a, b, acc, input_precision="ieee")


@triton.jit
def visible(q_pos, k_pos, EDGE: tl.constexpr, WINDOW: tl.constexpr):
    """Token mask of a tile: causal where EDGE, and inside the token window if there is one (WINDOW > 0)."""
    if not EDGE:
        seen = q_pos - k_pos < WINDOW
    elif WINDOW > 0:
        seen = (k_pos <= q_pos) & (q_pos - k_pos < WINDOW)
    else:
        seen = k_pos <= q_pos
    return seen


@triton.jit
def query_tile(
    order_ptr, runs_ptr, limit_ptr, blocks_ptr, count_ptr, queries, keys, query_blocks, key_blocks,
    N: tl.constexpr, K: tl.constexpr, BLOCK: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr,
    LISTED: tl.constexpr,
):  # fmt: skip
    """Which query tile this program has, the runs of its plan, and the key tiles that it visits.

    Tiles of one block start in turn, the last one first. Of what is visited come the number of whole tiles, the first
    and the end tile of the diagonal block, and where the list of the blocks begins.
    """
    TILES: tl.constexpr = BLOCK // QUERIES
    PER_BLOCK: tl.constexpr = BLOCK // KEYS
    item = tl.load(order_ptr + tl.program_id(0) // TILES)
    head = item % N
    query_block = (item // N) % query_blocks
    row = item // N // query_blocks
    runs = runs_ptr + ((row * K + head // (N // K)) * query_blocks + query_block) * 3
    diag = key_blocks - query_blocks + query_block
    limit = tl.load(limit_ptr + row * key_blocks + diag)
    at = diag * BLOCK + (TILES - 1 - tl.program_id(0) % TILES) * QUERIES
    first, n_sink, lo = tl.load(runs), tl.load(runs + 1), tl.load(runs + 2)
    whole = (n_sink + diag - lo) * PER_BLOCK
    edge = diag * PER_BLOCK
    edge_end = tl.cdiv(at + QUERIES, KEYS)
    if LISTED:
        listed = (row * N + head) * query_blocks + query_block
        count = tl.load(count_ptr + listed)
        blocks_ptr += listed.to(tl.int64) * key_blocks
        last = tl.load(blocks_ptr + tl.maximum(count - 1, 0)).to(tl.int32)
        has_diagonal = (count > 0) & (last == diag)
        whole = tl.where(has_diagonal, count - 1, count) * PER_BLOCK
        edge_end = tl.where(has_diagonal, edge_end, edge)
    # A tile without a query visits nothing.
    exists = (at < limit) & (at + QUERIES > keys - queries)
    whole = tl.where(exists, whole, 0)
    edge_end = tl.where(exists, edge_end, edge)
    return row, head, query_block, at, limit, first, n_sink, lo, whole, edge, edge_end, blocks_ptr


@triton.jit
def offsets(row, head, kv_head, queries, keys, N: tl.constexpr, K: tl.constexpr, HEAD: tl.constexpr):
    """Where a head begins in the arrays of queries, of keys, and of one number for each query (at position 0)."""
    row = row.to(tl.int64)
    return (
        (row * queries * N + head) * HEAD,
        (row * keys * K + kv_head) * HEAD,
        (row * N + head) * queries - (keys - queries),
    )


@triton.jit
def key_tile_start(step, first, n_sink, lo, blocks_ptr, BLOCK: tl.constexpr, KEYS: tl.constexpr, LISTED: tl.constexpr):
    """First token of the tile that a step visits: sinks first, then the local run; or the next listed block."""
    PER_BLOCK: tl.constexpr = BLOCK // KEYS
    if LISTED:
        tile = tl.load(blocks_ptr + step // PER_BLOCK).to(tl.int32) * PER_BLOCK + step % PER_BLOCK
    else:
        sinks = n_sink * PER_BLOCK
        tile = tl.where(step < sinks, first * PER_BLOCK + step, lo * PER_BLOCK + step - sinks)
    return tile * KEYS
