"""Public entry of hybrid attention: checks, then dispatch."""

from __future__ import annotations

from typing import Any

import jax

from pallas_kernels.checks import attention_spec, check_block_masks, check_choice, check_qkv, check_rows
from pallas_kernels.dispatch import choose, deferred
from pallas_kernels.hybrid_attention.reference import hybrid_attention_reference
from pallas_kernels.hybrid_attention.xla import hybrid_attention_xla

IMPLEMENTATIONS = {
    "reference": hybrid_attention_reference,
    "xla": hybrid_attention_xla,
    "tpu": deferred("pallas_kernels.hybrid_attention.tpu", "hybrid_attention_tpu"),
    "triton": deferred("pallas_kernels.hybrid_attention.triton", "hybrid_attention_triton"),
    "mosaic_gpu": deferred("pallas_kernels.hybrid_attention.mosaic_gpu", "hybrid_attention_mosaic_gpu"),
}

RETURN_LSE = ("reference", "xla")

hopper_refusal = deferred("pallas_kernels.hybrid_attention.mosaic_gpu", "why_not")


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
    return_lse: bool = False,
    impl: str = "auto",
) -> Any:
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
        return_lse: also return the log-sum-exp of each query, differentiable too: parts of the keys attended apart are
            put together again by it.
        impl: "auto" takes the best for the platform; or "reference", "xla", "tpu" (blocks of a multiple of 128
            tokens), "triton" (NVIDIA GPUs from compute capability 8.0, blocks of a multiple of 16 tokens) or
            "mosaic_gpu" (9.0, 16-bit operands, no masks).

    Returns:
        `[B, T, N, H]` in the type of q; with `return_lse` a pair of that and float32 `[B, T, N]`, the natural logarithm
        of the sum of exp(scaled score) over the keys that the query sees, -inf (and output 0) where it sees none.

    Raises:
        ValueError: a shape, a segment start or an option that does not fit.
        NotImplementedError: `impl` does not exist yet, or does not serve the case.
        RuntimeError: `impl` is for a device that is not there.
    """
    check_qkv(q_BTNH, k_BSKH, v_BSKH)
    B, H = q_BTNH.shape[0], q_BTNH.shape[3]
    S, K = k_BSKH.shape[1:3]
    spec = attention_spec(
        H, sink_blocks=sink_blocks, local_blocks=local_blocks, block_size=block_size, window=window, scale=scale
    )
    check_rows(B, S, block_size, segment_ids, lengths)
    check_choice("mode", mode, B, K, packed=segment_ids is not None)
    check_block_masks(q_BTNH, k_BSKH, block_size, block_mask, full_block_mask)
    masks = block_mask is not None or full_block_mask is not None

    def serves(name: str) -> bool:
        if return_lse and name not in RETURN_LSE:
            return False
        return name != "mosaic_gpu" or hopper_refusal(q_BTNH, spec, masks) is None

    if return_lse and impl in IMPLEMENTATIONS and impl not in RETURN_LSE:
        raise NotImplementedError(
            f"hybrid_attention with return_lse has no {impl!r} implementation yet. "
            f"Use one of: {', '.join(('auto', *RETURN_LSE))}."
        )
    return choose("hybrid_attention", impl, IMPLEMENTATIONS, serves)(
        q_BTNH,
        k_BSKH,
        v_BSKH,
        mode,
        spec,
        block_mask=block_mask,
        full_block_mask=full_block_mask,
        segment_ids=segment_ids,
        lengths=lengths,
        **({"return_lse": True} if return_lse else {}),
    )
