"""Public entry of block selection: checks, then dispatch."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from pallas_kernels.block_selection.reference import select_blocks_reference
from pallas_kernels.block_selection.scoring import SelectionSpec
from pallas_kernels.block_selection.xla import select_blocks_xla
from pallas_kernels.call import check_qkv, check_rows
from pallas_kernels.dispatch import choose, compiled, deferred

IMPLEMENTATIONS = {
    "reference": select_blocks_reference,
    "xla": select_blocks_xla,
    "triton": deferred("pallas_kernels.block_selection.triton", "select_blocks_triton"),
}


def select_blocks(
    q_BTNH: jax.Array,
    k_BSKH: jax.Array,
    *,
    threshold: float = 0.9,
    stride: int = 16,
    block_size: int = 128,
    heads: jax.Array | None = None,
    segment_ids: jax.Array | None = None,
    lengths: jax.Array | None = None,
    compat: bool = False,
    impl: str = "auto",
) -> jax.Array:
    """The key blocks that matter to each query block, by sums over antidiagonals (XAttention, arXiv 2503.16428).

    Groups of `stride` queries and keys are scored by the sum of one antidiagonal of their products, in float32; the
    softmax over groups, summed over blocks, is the mass of a block. Each query head keeps the fewest blocks that
    reach `threshold` of the mass of a query block, always the first block of the sequence and the query's own, none
    above the diagonal. No gradient flows through the choice.

    Args:
        q_BTNH: queries `[B, T, N, H]` after RoPE, the last T of the S key positions.
        k_BSKH: keys `[B, S, K, H]` after RoPE, K divides N.
        threshold: share of the mass to keep, above 0 and at most 1.
        stride: tokens of a group; divides `block_size`.
        block_size: tokens in a block.
        heads: bool `[B, K]`, the KV heads that need a choice; the others are not scored and keep the first block and
            their own. None for all.
        segment_ids: int `[B, S]`, 1, 2, ... and 0 for padding; every segment starts on a block boundary of the row.
        lengths: int `[B]`, valid leading tokens of each row. Blocks of padding keep nothing.
        compat: the rule of the released code: a block more in the first chunk of a sequence (2,048 to 16,384 tokens,
            by its length), scores and sums rounded to the type of q.
        impl: "auto", "reference", "xla" or "triton" (NVIDIA GPUs from compute capability 8.0; a power of two of groups,
            up to 128, to a block).

    Returns:
        bool `[B, N, T blocks, S blocks]`, as `hybrid_attention` takes it.

    Raises:
        ValueError: a shape, a segment start or an option that does not fit.
        NotImplementedError: `impl` does not exist yet.
    """
    check_qkv(q_BTNH, k_BSKH, k_BSKH)
    if not 0 < threshold <= 1:
        raise ValueError(f"threshold is {threshold}; wanted above 0 and at most 1.")
    if stride < 1 or block_size < 1 or block_size % stride:
        raise ValueError(f"stride is {stride} and block_size {block_size}; stride must divide block_size.")
    wanted = (q_BTNH.shape[0], k_BSKH.shape[2])
    heads = jnp.ones(wanted, jnp.bool_) if heads is None else heads
    if heads.shape != wanted or heads.dtype != jnp.bool_:
        raise ValueError(f"heads is {heads.dtype}{heads.shape}; wanted bool{wanted}: batch, KV heads.")
    check_rows(q_BTNH.shape[0], k_BSKH.shape[1], block_size, segment_ids, lengths)
    q, k = jax.lax.stop_gradient((q_BTNH, k_BSKH))
    spec = SelectionSpec(threshold, stride, block_size, compat)
    groups = block_size // stride

    def serves(name: str) -> bool:
        return name != "triton" or groups in (1, 2, 4, 8, 16, 32, 64, 128)

    run = compiled(choose("select_blocks", impl, IMPLEMENTATIONS, serves), (2,))
    return run(q, k, spec, heads=heads, segment_ids=segment_ids, lengths=lengths)
