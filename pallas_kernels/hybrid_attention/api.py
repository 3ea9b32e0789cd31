"""Public entry of hybrid attention: checks, then dispatch."""

from __future__ import annotations

import jax

from pallas_kernels.checks import attention_spec, check_block_mask, check_choice, check_qkv, check_rows
from pallas_kernels.dispatch import choose
from pallas_kernels.hybrid_attention.reference import hybrid_attention_reference
from pallas_kernels.hybrid_attention.tpu import hybrid_attention_tpu
from pallas_kernels.hybrid_attention.xla import hybrid_attention_xla
from pallas_kernels.layout import Geometry

IMPLEMENTATIONS = {
    "reference": hybrid_attention_reference,
    "xla": hybrid_attention_xla,
    "tpu": hybrid_attention_tpu,
}


def hybrid_attention(
    q_BTNH: jax.Array,
    k_BSKH: jax.Array,
    v_BSKH: jax.Array,
    mode: jax.Array,
    *,
    sink_blocks: int = 1,
    local_blocks: int = 16,
    block_size: int = 128,
    block_mask: jax.Array | None = None,
    full_block_mask: jax.Array | None = None,
    segment_ids: jax.Array | None = None,
    lengths: jax.Array | None = None,
    window: int | None = None,
    scale: float | None = None,
    impl: str = "auto",
) -> jax.Array:
    """Causal attention in which every (row, KV head) is full or sparse, in one launch (Elastic Attention, section 3).

    Queries are the last T of the S key positions. All query heads of a KV head share its mode. Differentiable in q, k
    and v; the backward pass skips what the forward pass skips.

    Args:
        q_BTNH: queries `[B, T, N, H]`.
        k_BSKH: keys `[B, S, K, H]`, T <= S, K divides N.
        v_BSKH: values, like the keys.
        mode: int or bool `[B, K]`, or `[B, M, K]` for packed rows (segment s uses index s - 1): 0 full, 1 sparse.
        sink_blocks: leading blocks of its segment that a sparse head always sees.
        local_blocks: last blocks, the query's own included, that a sparse head sees.
        block_size: tokens in a block; blocks count from the start of the segment.
        block_mask: bool `[B, N, T blocks, S blocks]`: sparse heads see these blocks instead of sinks and local blocks.
        full_block_mask: the same for full heads.
        segment_ids: int `[B, S]`, 1, 2, ... and 0 for padding; every segment starts on a block boundary of the row.
        lengths: int `[B]`, valid leading tokens of each row. Padding may hold anything; its outputs are 0.
        window: every head sees only the last `window` tokens, on top of its mode.
        scale: factor of the scores; 1 / sqrt(H) by default.
        impl: "auto", "reference", "xla" or "tpu".

    Returns:
        `[B, T, N, H]` in the type of q.

    Raises:
        ValueError: a shape, a segment start or an option that does not fit.
        NotImplementedError: `impl` does not exist yet, or does not support the masks.
    """
    check_qkv(q_BTNH, k_BSKH, v_BSKH)
    B, T, N, H = q_BTNH.shape
    S, K = k_BSKH.shape[1:3]
    spec = attention_spec(
        H, sink_blocks=sink_blocks, local_blocks=local_blocks, block_size=block_size, window=window, scale=scale
    )
    check_rows(B, S, block_size, segment_ids, lengths)
    check_choice("mode", mode, B, K, packed=segment_ids is not None)
    geometry = Geometry(block_size, T, S)
    for name, mask in (("block_mask", block_mask), ("full_block_mask", full_block_mask)):
        check_block_mask(name, mask, (B, N, geometry.query_blocks, geometry.key_blocks))
    return choose("hybrid_attention", impl, IMPLEMENTATIONS)(
        q_BTNH,
        k_BSKH,
        v_BSKH,
        mode,
        spec,
        block_mask=block_mask,
        full_block_mask=full_block_mask,
        segment_ids=segment_ids,
        lengths=lengths,
    )
