"""Public entry of hybrid attention: checks, then dispatch."""

from __future__ import annotations

from typing import Any

import jax

from pallas_kernels.call import check_attention
from pallas_kernels.dispatch import choose, compiled, deferred, kernel_takes
from pallas_kernels.hybrid_attention.reference import hybrid_attention_reference
from pallas_kernels.hybrid_attention.xla import hybrid_attention_xla

IMPLEMENTATIONS = {
    "reference": hybrid_attention_reference,
    "xla": hybrid_attention_xla,
    "tpu": deferred("pallas_kernels.hybrid_attention.tpu", "hybrid_attention_tpu"),
    "triton": deferred("pallas_kernels.hybrid_attention.triton", "hybrid_attention_triton"),
    "mosaic_gpu": deferred("pallas_kernels.hybrid_attention.mosaic_gpu", "hybrid_attention_mosaic_gpu"),
}

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
            Other values are refused; in a compiled program, which cannot refuse, they are sparse.
        sink_blocks: leading blocks of its segment that a sparse head always sees.
        local_blocks: last blocks, the query's own included, that a sparse head sees.
        block_size: tokens in a block; blocks count from the start of the segment.
        block_mask: bool `[B, N, T blocks, S blocks]`: sparse heads see these blocks instead of sinks and local blocks.
        full_block_mask: the same for full heads.
        segment_ids: int `[B, S]`, 1, 2, ... and 0 for padding; every segment starts on a block boundary of the row.
        lengths: int `[B]`, valid leading tokens of each row. Padding may hold anything; its outputs are 0.
        window: every head sees only the last `window` tokens, on top of its mode.
        scale: factor of the scores; 1 / sqrt(H) by default.
        return_lse: also return the log-sum-exp of each query, differentiable too. With it, attention over parts of the
            keys can be merged.
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
    call = check_attention(
        q_BTNH,
        k_BSKH,
        v_BSKH,
        sink_blocks=sink_blocks,
        local_blocks=local_blocks,
        block_size=block_size,
        block_mask=block_mask,
        full_block_mask=full_block_mask,
        segment_ids=segment_ids,
        lengths=lengths,
        window=window,
        scale=scale,
        return_lse=return_lse,
    )
    call.check_choice("mode", mode)

    def serves(name: str) -> bool:
        return kernel_takes(name, call) and (name != "mosaic_gpu" or hopper_refusal(call) is None)

    run = compiled(choose("hybrid_attention", impl, IMPLEMENTATIONS, serves))
    out, lse = run(call, mode != 0)
    return (out, lse) if return_lse else out
