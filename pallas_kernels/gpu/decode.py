"""Decode kernel in Triton: a few queries against one part of a quantised cache; parts are merged by log-sum-exp.

The packed words of a group form one tile that goes to the tensor cores plane by plane: a shift and a mask give the
codes of 16 or more tokens, as float16 numbers without a conversion, because the bits of a small integer are those of
the subnormal number integer * 2^-24. Scales and zeros meet the queries before the product and the weights after it.
"""

# Kernels are Triton's language, not Python's:
# pyrefly: ignore-errors

import triton
import triton.language as tl

from pallas_kernels.gpu.tiles import MASKED, dot, load_rows, store_rows

LOG2_E = tl.constexpr(1.4426950408889634)
SUBNORMAL = tl.constexpr(2.0**24)


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
def seen(pos, least, near, last, SINK_END: tl.constexpr):
    """The visiting rule for tokens at `pos` `[S]` and the limits `[R]` of the queries."""
    pos = pos[None, :]
    inside = (pos >= least[:, None]) & (pos <= last[:, None])
    return inside & ((pos < SINK_END) | (pos >= near[:, None]))


@triton.jit
def visit_group(
    acc, zeros, top, total, q, group, page, channel_group, limits,
    k_codes_ptr, k_scale_ptr, k_zero_ptr, k_norm_ptr, v_codes_ptr, v_scale_ptr, v_zero_ptr, holes_ptr, log2_scale,
    HEAD: tl.constexpr, HEAD_PAD: tl.constexpr, CHANNELS: tl.constexpr, CHANNELS_PAD: tl.constexpr, GROUP: tl.constexpr,
    WORDS: tl.constexpr, ROWS: tl.constexpr, BITS: tl.constexpr, SINK_END: tl.constexpr, NORM: tl.constexpr,
    WIDE: tl.constexpr,
):  # fmt: skip
    """Online softmax over one more group: `acc` sums weights * codes / UNIT, `zeros` weights * zeros.

    Words of fewer than 16 rows are loaded again for the rows that miss, each copy with the planes of its own.
    """
    PLANES: tl.constexpr = 32 // BITS * WORDS // ROWS
    HOLE_WORDS: tl.constexpr = GROUP // 32
    C: tl.constexpr = HEAD // CHANNELS
    OPERAND: tl.constexpr = tl.float32 if WIDE else tl.float16
    UNIT: tl.constexpr = 1.0 if WIDE else SUBNORMAL
    least, near, last = limits
    page = page.to(tl.int64)
    row = tl.arange(0, ROWS)
    copy = row // WORDS
    shift = (copy * (PLANES * BITS)).to(tl.uint32)[:, None]
    first_token = copy * (PLANES * WORDS) + row % WORDS
    dims = tl.arange(0, HEAD_PAD)
    channels = tl.arange(0, CHANNELS_PAD)

    # One address for the page and small offsets in it: 64-bit offsets of every element would cost registers.
    k_codes_ptr += page * (WORDS * HEAD)
    v_codes_ptr += page * (WORDS * HEAD) + channel_group * CHANNELS
    k_scale_ptr += page * HEAD
    k_zero_ptr += page * HEAD
    v_scale_ptr += page * (GROUP * C) + channel_group
    v_zero_ptr += page * (GROUP * C) + channel_group
    holes_ptr += page * HOLE_WORDS
    if NORM:
        k_norm_ptr += page * GROUP
    word_at = (row % WORDS)[:, None] * HEAD
    k_ptrs = k_codes_ptr + (word_at + dims[None, :])
    v_ptrs = v_codes_ptr + (word_at + channels[None, :])
    if HEAD == HEAD_PAD:
        k_words = tl.load(k_ptrs, cache_modifier=".ca")
    else:
        k_words = tl.load(k_ptrs, mask=dims[None, :] < HEAD, other=0, cache_modifier=".ca")
    if CHANNELS == CHANNELS_PAD:
        v_words = tl.load(v_ptrs, cache_modifier=".ca")
    else:
        v_words = tl.load(v_ptrs, mask=channels[None, :] < CHANNELS, other=0, cache_modifier=".ca")
    k_scale = tl.load(k_scale_ptr + dims, mask=dims < HEAD, other=0.0).to(tl.float32)
    k_zero = tl.load(k_zero_ptr + dims, mask=dims < HEAD, other=0.0).to(tl.float32)

    if ROWS > WORDS:
        k_words = k_words >> shift
        v_words = v_words >> shift
    scaled_q = (q * k_scale[None, :]).to(OPERAND)
    bias = tl.sum(q * k_zero[None, :], 1)[:, None]
    new_top = top
    scores = ()
    for plane in tl.static_range(PLANES):
        token = first_token + plane * WORDS
        codes = codes_of(k_words, plane * BITS, BITS, WIDE)
        part = (dot(scaled_q, tl.trans(codes)) * UNIT + bias) * log2_scale
        if NORM:
            part *= tl.load(k_norm_ptr + token).to(tl.float32)[None, :]
        hole = tl.load(holes_ptr + token % HOLE_WORDS) >> (token // HOLE_WORDS).to(tl.uint32)
        visible = seen(group * GROUP + token, least, near, last, SINK_END) & ((hole & 1) == 0)[None, :]
        part = tl.where(visible, part, MASKED)
        new_top = tl.maximum(new_top, tl.max(part, 1))
        scores = scores + (part,)

    decay = tl.exp2(top - new_top)
    acc *= decay[:, None]
    zeros *= decay
    total *= decay
    top = new_top
    zero_sums = tl.zeros_like(scores[0])
    weight_sums = tl.zeros_like(scores[0])
    for plane in tl.static_range(PLANES):
        token = first_token + plane * WORDS
        # A row that has seen nothing yet has MASKED for its maximum, and weights that must not be 1.
        weights = tl.where(scores[plane] > 0.5 * MASKED, tl.exp2(scores[plane] - top[:, None]), 0.0)
        v_scale = tl.load(v_scale_ptr + token * C).to(tl.float32)
        zero_sums += weights * tl.load(v_zero_ptr + token * C).to(tl.float32)[None, :]
        weight_sums += weights
        codes = codes_of(v_words, plane * BITS, BITS, WIDE)
        acc = dot((weights * v_scale[None, :]).to(OPERAND), codes, acc)
    zeros += tl.sum(zero_sums, 1)
    total += tl.sum(weight_sums, 1)
    return acc, zeros, top, total


@triton.jit
def visit_exact(
    acc, top, total, q, at, slots, channel_group, limits, k_ptr, v_ptr, pos_ptr, log2_scale,
    HEAD: tl.constexpr, HEAD_PAD: tl.constexpr, CHANNELS: tl.constexpr, CHANNELS_PAD: tl.constexpr, KEYS: tl.constexpr,
    SINK_END: tl.constexpr,
):  # fmt: skip
    """Online softmax over some more exact tokens; empty slots may hold anything."""
    least, near, last = limits
    slot = at + tl.arange(0, KEYS)
    pos = tl.load(pos_ptr + slot, mask=slot < slots, other=-1)
    k = load_rows(k_ptr, at, pos >= 0, KEYS, HEAD, HEAD, HEAD_PAD)
    v = load_rows(v_ptr + channel_group * CHANNELS, at, pos >= 0, KEYS, HEAD, CHANNELS, CHANNELS_PAD)
    visible = seen(pos, least, near, last, SINK_END) & (pos >= 0)[None, :]
    scores = tl.where(visible, dot(q, tl.trans(k.to(q.dtype))) * log2_scale, MASKED)
    new_top = tl.maximum(top, tl.max(scores, 1))
    weights = tl.where(visible, tl.exp2(scores - new_top[:, None]), 0.0)
    decay = tl.exp2(top - new_top)
    acc = dot(weights.to(q.dtype), v.to(q.dtype), acc * decay[:, None])
    return acc, new_top, total * decay + tl.sum(weights, 1)


@triton.jit
def decode_kernel(
    q_ptr, k_codes_ptr, k_scale_ptr, k_zero_ptr, k_norm_ptr, v_codes_ptr, v_scale_ptr, v_zero_ptr, holes_ptr,
    table_ptr, runs_ptr, limits_ptr, exact_k_ptr, exact_v_ptr, exact_pos_ptr, groups, slots, scale,
    acc_ptr, top_ptr, total_ptr,
    HEAD: tl.constexpr, HEAD_PAD: tl.constexpr, CHANNELS: tl.constexpr, CHANNELS_PAD: tl.constexpr, GROUP: tl.constexpr,
    WORDS: tl.constexpr, ROWS: tl.constexpr, BITS: tl.constexpr, NORM: tl.constexpr, WIDE: tl.constexpr,
    T: tl.constexpr, R: tl.constexpr, R_PAD: tl.constexpr, KEYS: tl.constexpr, PARTS: tl.constexpr,
    SINK_END: tl.constexpr,
):  # fmt: skip
    """One part of one (row, KV head): part 0 is the exact tokens, the others share the groups of the head evenly."""
    C: tl.constexpr = HEAD // CHANNELS
    item = tl.program_id(0) // (PARTS * C)
    part = tl.program_id(0) // C % PARTS
    channel_group = tl.program_id(0) % C
    head = item.to(tl.int64)
    r = tl.arange(0, R_PAD)
    limit_ptrs = limits_ptr + (item * T + r % T) * 3
    limits = (tl.load(limit_ptrs), tl.load(limit_ptrs + 1), tl.load(limit_ptrs + 2))
    log2_scale = scale * LOG2_E
    q = load_rows(q_ptr + head * R * HEAD, 0, r < R, R_PAD, HEAD, HEAD, HEAD_PAD)
    acc = tl.zeros([R_PAD, CHANNELS_PAD], tl.float32)
    top = tl.full([R_PAD], MASKED, tl.float32)
    total = tl.zeros([R_PAD], tl.float32)
    if part == 0:
        # Without a pipeline, whose addresses would take registers from the loop over groups.
        for at in tl.range(0, slots, KEYS, num_stages=1):
            acc, top, total = visit_exact(
                acc, top, total, q, at, slots, channel_group, limits, exact_k_ptr + head * slots * HEAD,
                exact_v_ptr + head * slots * HEAD, exact_pos_ptr + head * slots, log2_scale,
                HEAD, HEAD_PAD, CHANNELS, CHANNELS_PAD, KEYS, SINK_END,
            )  # fmt: skip
    else:
        first = tl.load(runs_ptr + item * 4)
        n_sink = tl.load(runs_ptr + item * 4 + 1)
        lo = tl.load(runs_ptr + item * 4 + 2)
        steps = tl.load(runs_ptr + item * 4 + 3)
        share = tl.cdiv(steps, PARTS - 1)
        wide_q = q.to(tl.float32)
        zeros = tl.zeros([R_PAD], tl.float32)
        for step in range((part - 1) * share, tl.minimum(part * share, steps)):
            group = tl.where(step < n_sink, first + step, lo + step - n_sink)
            acc, zeros, top, total = visit_group(
                acc, zeros, top, total, wide_q, group, tl.load(table_ptr + head * groups + group), channel_group,
                limits,
                k_codes_ptr, k_scale_ptr, k_zero_ptr, k_norm_ptr, v_codes_ptr, v_scale_ptr, v_zero_ptr, holes_ptr,
                log2_scale, HEAD, HEAD_PAD, CHANNELS, CHANNELS_PAD, GROUP, WORDS, ROWS, BITS, SINK_END, NORM, WIDE,
            )  # fmt: skip
        acc = acc * (1.0 if WIDE else SUBNORMAL) + zeros[:, None]
    at = (head * PARTS + part) * R
    store_rows(acc_ptr + at * HEAD + channel_group * CHANNELS, 0, r < R, acc, R_PAD, HEAD, CHANNELS, CHANNELS_PAD)
    if channel_group == 0:
        tl.store(top_ptr + at + r, top, mask=r < R)
        tl.store(total_ptr + at + r, total, mask=r < R)
