"""Decode kernel in Triton: a few queries against one part of a quantised cache; parts are merged by log-sum-exp.

The packed words of a group form one tile that goes to the tensor cores plane by plane: a shift and a mask give the
codes of 16 or more tokens, as float16 numbers without a conversion, because the bits of a small integer are those of
the subnormal number integer * 2^-24. Scales and zeros meet the queries before the product and the weights after it.
"""

# Kernels are Triton's language, not Python's:
# pyrefly: ignore-errors

from typing import Any, NamedTuple

import triton
import triton.language as tl

from pallas_kernels.gpu.tiles import MASKED, dot, load_rows, store_rows

LOG2_E = tl.constexpr(1.4426950408889634)
SUBNORMAL = tl.constexpr(2.0**24)


class DecodeSizes(NamedTuple):
    """What a kernel is compiled for. A name in _PAD is the power of two, at least 16, that holds the size before it."""

    HEAD: int
    """Head dim."""
    HEAD_PAD: int
    CHANNELS: int
    """Channels of a value that share a scale. A program computes the output of one such channel group."""
    CHANNELS_PAD: int
    GROUP: int
    """Tokens of a group."""
    WORDS: int
    """Rows of packed words of a group: GROUP * BITS / 32."""
    ROWS: int
    """WORDS, but at least the 16 rows that a tensor core product needs."""
    BITS: int
    NORM: bool
    """Whether keys are stored divided by a norm."""
    WIDE: bool
    """Whether products are float32 instead of float16."""
    T: int
    """Queries of a row of the batch."""
    R: int
    """Rows of a tile: T queries of each query head of a KV head."""
    R_PAD: int
    KEYS: int
    """Exact tokens of a tile."""
    PARTS: int
    """Programs that share a (row, KV head), for each channel group."""
    SINK_END: int
    """Tokens of the sink blocks."""


class Pages(NamedTuple):
    """Pointers to the fields of `decode_attention.view.Pages`."""

    k_codes: Any
    k_scale: Any
    k_zero: Any
    k_norm: Any
    v_codes: Any
    v_scale: Any
    v_zero: Any
    holes: Any


class Limits(NamedTuple):
    """For each row of the tile the tokens that it sees, see `token_limits`."""

    least: Any
    near: Any
    last: Any


class Softmax(NamedTuple):
    """Running softmax of the rows of a tile, over base-2 scores.

    The output is `acc`, plus `zeros` on every channel, over `total`. While groups are visited, `acc` sums weights
    times codes as the tensor cores see them, so its unit is that of `codes_of`.
    """

    acc: Any
    zeros: Any
    top: Any
    total: Any


@triton.jit
def codes_of(words, AT: tl.constexpr, BITS: tl.constexpr, WIDE: tl.constexpr):
    """Codes from bit AT of each word on, as float32 (WIDE) or as float16 times 2^-24."""
    codes = (words >> AT) & ((1 << BITS) - 1)
    if WIDE:
        numbers = codes.to(tl.float32)
    else:
        numbers = codes.to(tl.uint16).to(tl.float16, bitcast=True)
    return numbers


@triton.jit
def seen(pos, limits, SINK_END: tl.constexpr):
    """Which rows see the tokens at `pos` `[S]`: bool `[R, S]`."""
    pos = pos[None, :]
    inside = (pos >= limits.least[:, None]) & (pos <= limits.last[:, None])
    return inside & ((pos < SINK_END) | (pos >= limits.near[:, None]))


@triton.jit
def load_words(ptr, columns, SIZES: tl.constexpr, WIDTH: tl.constexpr, WIDTH_PAD: tl.constexpr):
    """Packed words `[ROWS, WIDTH_PAD]` of a group; where a group has fewer than ROWS, its words come again."""
    row = tl.arange(0, SIZES.ROWS)
    ptrs = ptr + ((row % SIZES.WORDS)[:, None] * SIZES.HEAD + columns[None, :])
    # Branches: a mask that is always true would still cost a predicate.
    if WIDTH == WIDTH_PAD:
        words = tl.load(ptrs, cache_modifier=".ca")
    else:
        words = tl.load(ptrs, mask=columns[None, :] < WIDTH, other=0, cache_modifier=".ca")
    return words


@triton.jit
def visit_group(state, q, group, page, channel_group, limits, pages, log2_scale, SIZES: tl.constexpr):
    """Online softmax over one more group.

    Bits `[BITS * j, BITS * (j + 1))` of all words are plane j, the codes of WORDS consecutive tokens (see `pack`). A
    product needs 16 rows; words of fewer rows are therefore loaded several times over, each copy is shifted to planes
    of its own, and PLANES planes of ROWS tokens remain. The scores of all planes come first, because the weights need
    the new maximum; then the weights of each plane meet the values.
    """
    HEAD: tl.constexpr = SIZES.HEAD
    WORDS: tl.constexpr = SIZES.WORDS
    BITS: tl.constexpr = SIZES.BITS
    GROUP: tl.constexpr = SIZES.GROUP
    PLANES: tl.constexpr = 32 // BITS * WORDS // SIZES.ROWS
    HOLE_WORDS: tl.constexpr = GROUP // 32
    C: tl.constexpr = HEAD // SIZES.CHANNELS
    OPERAND: tl.constexpr = tl.float32 if SIZES.WIDE else tl.float16
    UNIT: tl.constexpr = 1.0 if SIZES.WIDE else SUBNORMAL
    page = page.to(tl.int64)
    row = tl.arange(0, SIZES.ROWS)
    copy = row // WORDS
    first_token = copy * (PLANES * WORDS) + row % WORDS
    dims = tl.arange(0, SIZES.HEAD_PAD)

    # One address for the page and small offsets in it: 64-bit offsets of every element would cost registers.
    k_scale_ptr = pages.k_scale + page * HEAD
    k_zero_ptr = pages.k_zero + page * HEAD
    v_scale_ptr = pages.v_scale + (page * (GROUP * C) + channel_group)
    v_zero_ptr = pages.v_zero + (page * (GROUP * C) + channel_group)
    holes_ptr = pages.holes + page * HOLE_WORDS
    # Both tiles of words are loaded before the first product, which hides the time that they take.
    k_words = load_words(pages.k_codes + page * (WORDS * HEAD), dims, SIZES, HEAD, SIZES.HEAD_PAD)
    v_words = load_words(
        pages.v_codes + (page * (WORDS * HEAD) + channel_group * SIZES.CHANNELS), tl.arange(0, SIZES.CHANNELS_PAD),
        SIZES, SIZES.CHANNELS, SIZES.CHANNELS_PAD,
    )  # fmt: skip
    k_scale = tl.load(k_scale_ptr + dims, mask=dims < HEAD, other=0.0).to(tl.float32)
    k_zero = tl.load(k_zero_ptr + dims, mask=dims < HEAD, other=0.0).to(tl.float32)
    if SIZES.ROWS > WORDS:
        shift = (copy * (PLANES * BITS)).to(tl.uint32)[:, None]
        k_words = k_words >> shift
        v_words = v_words >> shift

    # With k = code * scale + zero by channel: q.k = (q * scale).code + q.zero.
    scaled_q = (q * k_scale[None, :]).to(OPERAND)
    bias = tl.sum(q * k_zero[None, :], 1)[:, None]
    top = state.top
    scores = ()
    for plane in tl.static_range(PLANES):
        token = first_token + plane * WORDS
        codes = codes_of(k_words, plane * BITS, BITS, SIZES.WIDE)
        part = (dot(scaled_q, tl.trans(codes)) * UNIT + bias) * log2_scale
        if SIZES.NORM:
            part *= tl.load(pages.k_norm + page * GROUP + token).to(tl.float32)[None, :]
        hole = tl.load(holes_ptr + token % HOLE_WORDS) >> (token // HOLE_WORDS).to(tl.uint32)
        visible = seen(group * GROUP + token, limits, SIZES.SINK_END) & ((hole & 1) == 0)[None, :]
        part = tl.where(visible, part, MASKED)
        top = tl.maximum(top, tl.max(part, 1))
        scores = scores + (part,)

    # With v = code * scale + zero by token: sum of p v = sum of (p * scale) code + sum of p zero.
    decay = tl.exp2(state.top - top)
    acc = state.acc * decay[:, None]
    zero_sums = tl.zeros_like(scores[0])
    weight_sums = tl.zeros_like(scores[0])
    for plane in tl.static_range(PLANES):
        token = first_token + plane * WORDS
        # A row that has seen nothing yet has MASKED for its maximum, and weights that must not be 1.
        weights = tl.where(scores[plane] > 0.5 * MASKED, tl.exp2(scores[plane] - top[:, None]), 0.0)
        v_scale = tl.load(v_scale_ptr + token * C).to(tl.float32)
        zero_sums += weights * tl.load(v_zero_ptr + token * C).to(tl.float32)[None, :]
        weight_sums += weights
        codes = codes_of(v_words, plane * BITS, BITS, SIZES.WIDE)
        acc = dot((weights * v_scale[None, :]).to(OPERAND), codes, acc)
    zeros = state.zeros * decay + tl.sum(zero_sums, 1)
    return Softmax(acc, zeros, top, state.total * decay + tl.sum(weight_sums, 1))


@triton.jit
def visit_exact(state, q, at, slots, channel_group, limits, k_ptr, v_ptr, pos_ptr, log2_scale, SIZES: tl.constexpr):
    """Online softmax over the exact tokens in the slots from `at` on; empty slots may hold anything."""
    slot = at + tl.arange(0, SIZES.KEYS)
    pos = tl.load(pos_ptr + slot, mask=slot < slots, other=-1)
    v_ptr += channel_group * SIZES.CHANNELS
    k = load_rows(k_ptr, at, pos >= 0, SIZES.KEYS, SIZES.HEAD, SIZES.HEAD, SIZES.HEAD_PAD)
    v = load_rows(v_ptr, at, pos >= 0, SIZES.KEYS, SIZES.HEAD, SIZES.CHANNELS, SIZES.CHANNELS_PAD)
    visible = seen(pos, limits, SIZES.SINK_END) & (pos >= 0)[None, :]
    scores = tl.where(visible, dot(q, tl.trans(k.to(q.dtype))) * log2_scale, MASKED)
    top = tl.maximum(state.top, tl.max(scores, 1))
    weights = tl.where(visible, tl.exp2(scores - top[:, None]), 0.0)
    decay = tl.exp2(state.top - top)
    acc = dot(weights.to(q.dtype), v.to(q.dtype), state.acc * decay[:, None])
    return Softmax(acc, state.zeros, top, state.total * decay + tl.sum(weights, 1))


@triton.jit
def decode_kernel(
    q_ptr, k_codes_ptr, k_scale_ptr, k_zero_ptr, k_norm_ptr, v_codes_ptr, v_scale_ptr, v_zero_ptr, holes_ptr,
    table_ptr, runs_ptr, limits_ptr, exact_k_ptr, exact_v_ptr, exact_pos_ptr, groups, slots, scale,
    acc_ptr, top_ptr, total_ptr,
    SIZES: tl.constexpr,
):  # fmt: skip
    """One part of one (row, KV head): part 0 is the exact tokens, the others share the groups of the head evenly.

    Reads queries `q` `[B, K, R, H]`, the pages, and of each (row, KV head): its block table `[groups]`, the runs of
    groups that it visits `[4]` (`group_runs`), the limits of its queries `[T, 3]` (`token_limits`) and its exact
    tokens in `slots` slots. Writes of each part the unnormalised output `acc` `[R, H]`, the largest base-2 score `top`
    `[R]` and the sum of weights `total` `[R]`.
    """
    HEAD: tl.constexpr = SIZES.HEAD
    R: tl.constexpr = SIZES.R
    R_PAD: tl.constexpr = SIZES.R_PAD
    PARTS: tl.constexpr = SIZES.PARTS
    C: tl.constexpr = HEAD // SIZES.CHANNELS
    item = tl.program_id(0) // (PARTS * C)
    part = tl.program_id(0) // C % PARTS
    channel_group = tl.program_id(0) % C
    head = item.to(tl.int64)
    r = tl.arange(0, R_PAD)
    limit_ptrs = limits_ptr + (item * SIZES.T + r % SIZES.T) * 3
    limits = Limits(tl.load(limit_ptrs), tl.load(limit_ptrs + 1), tl.load(limit_ptrs + 2))
    log2_scale = scale * LOG2_E
    q = load_rows(q_ptr + head * R * HEAD, 0, r < R, R_PAD, HEAD, HEAD, SIZES.HEAD_PAD)
    nothing = tl.zeros([R_PAD], tl.float32)
    state = Softmax(
        tl.zeros([R_PAD, SIZES.CHANNELS_PAD], tl.float32), nothing, tl.full([R_PAD], MASKED, tl.float32), nothing
    )
    if part == 0:
        # Without a pipeline, whose addresses would take registers from the loop over groups.
        for at in tl.range(0, slots, SIZES.KEYS, num_stages=1):
            state = visit_exact(
                state, q, at, slots, channel_group, limits, exact_k_ptr + head * slots * HEAD,
                exact_v_ptr + head * slots * HEAD, exact_pos_ptr + head * slots, log2_scale, SIZES,
            )  # fmt: skip
    else:
        pages = Pages(k_codes_ptr, k_scale_ptr, k_zero_ptr, k_norm_ptr, v_codes_ptr, v_scale_ptr, v_zero_ptr, holes_ptr)
        first = tl.load(runs_ptr + item * 4)
        n_sink = tl.load(runs_ptr + item * 4 + 1)
        lo = tl.load(runs_ptr + item * 4 + 2)
        steps = tl.load(runs_ptr + item * 4 + 3)
        share = tl.cdiv(steps, PARTS - 1)
        wide_q = q.to(tl.float32)
        for step in range((part - 1) * share, tl.minimum(part * share, steps)):
            group = tl.where(step < n_sink, first + step, lo + step - n_sink)
            page = tl.load(table_ptr + head * groups + group)
            state = visit_group(state, wide_q, group, page, channel_group, limits, pages, log2_scale, SIZES)
        acc = state.acc * (1.0 if SIZES.WIDE else SUBNORMAL) + state.zeros[:, None]
        state = Softmax(acc, state.zeros, state.top, state.total)
    at = (head * PARTS + part) * R
    acc_ptr += at * HEAD + channel_group * SIZES.CHANNELS
    store_rows(acc_ptr, 0, r < R, state.acc, R_PAD, HEAD, SIZES.CHANNELS, SIZES.CHANNELS_PAD)
    if channel_group == 0:
        tl.store(top_ptr + at + r, state.top, mask=r < R)
        tl.store(total_ptr + at + r, state.total, mask=r < R)
