"""Public entries of the training forms: both branches at once, and the routed mixture."""

from __future__ import annotations

import jax

from pallas_kernels.checks import attention_spec, check_block_masks, check_choice, check_qkv, check_rows
from pallas_kernels.dispatch import choose, deferred, kernel_takes
from pallas_kernels.dual_attention.reference import dual_attention_reference, routed_attention_reference
from pallas_kernels.dual_attention.xla import dual_attention_xla, routed_attention_xla

DUAL = {
    "reference": dual_attention_reference,
    "xla": dual_attention_xla,
    "tpu": deferred("pallas_kernels.dual_attention.tpu", "dual_attention_tpu"),
    "triton": deferred("pallas_kernels.dual_attention.triton", "dual_attention_triton"),
}
ROUTED = {
    "reference": routed_attention_reference,
    "xla": routed_attention_xla,
    "tpu": deferred("pallas_kernels.dual_attention.tpu", "routed_attention_tpu"),
    "triton": deferred("pallas_kernels.dual_attention.triton", "routed_attention_triton"),
}


def dual_attention(
    q_BTNH: jax.Array,
    k_BSKH: jax.Array,
    v_BSKH: jax.Array,
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
) -> tuple[jax.Array, jax.Array]:
    """Full and sparse attention of every head, in one pass over the keys. Differentiable in q, k and v.

    With a block mask the branches need not contain each other and take a pass each.

    Arguments and errors are those of `hybrid_attention`.

    Returns:
        (full, sparse), each `[B, T, N, H]` in the type of q.
    """
    check_qkv(q_BTNH, k_BSKH, v_BSKH)
    spec = attention_spec(
        q_BTNH.shape[3],
        sink_blocks=sink_blocks,
        local_blocks=local_blocks,
        block_size=block_size,
        window=window,
        scale=scale,
    )
    check_rows(q_BTNH.shape[0], k_BSKH.shape[1], block_size, segment_ids, lengths)
    check_block_masks(q_BTNH, k_BSKH, block_size, block_mask, full_block_mask)
    groups = q_BTNH.shape[2] // k_BSKH.shape[2]
    masks = block_mask is not None or full_block_mask is not None

    def serves(name: str) -> bool:
        return kernel_takes(name, block_size, groups, masks)

    return choose("dual_attention", impl, DUAL, serves)(
        q_BTNH,
        k_BSKH,
        v_BSKH,
        spec,
        block_mask=block_mask,
        full_block_mask=full_block_mask,
        segment_ids=segment_ids,
        lengths=lengths,
    )


def routed_attention(
    q_BTNH: jax.Array,
    k_BSKH: jax.Array,
    v_BSKH: jax.Array,
    z: jax.Array,
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
    """Attention through a differentiable choice per head (Elastic Attention, section 3, straight-through training).

    Forward is the chosen branch. The gradient in z is the sum of <dO, full - sparse> over the tokens and query heads
    that z covers; q, k and v get gradients through the chosen branch only.

    Args:
        z: float `[B, K]`, or `[B, M, K]` for packed rows (segment s uses index s - 1): 1.0 full, 0.0 sparse.
            Other values are refused; in a compiled program, which cannot refuse, they are full above 0.5.

    The other arguments and the errors are those of `hybrid_attention`.

    Returns:
        `[B, T, N, H]` in the type of q.
    """
    check_qkv(q_BTNH, k_BSKH, v_BSKH)
    spec = attention_spec(
        q_BTNH.shape[3],
        sink_blocks=sink_blocks,
        local_blocks=local_blocks,
        block_size=block_size,
        window=window,
        scale=scale,
    )
    check_rows(q_BTNH.shape[0], k_BSKH.shape[1], block_size, segment_ids, lengths)
    check_block_masks(q_BTNH, k_BSKH, block_size, block_mask, full_block_mask)
    check_choice("z", z, q_BTNH.shape[0], k_BSKH.shape[2], packed=segment_ids is not None)
    groups = q_BTNH.shape[2] // k_BSKH.shape[2]
    masks = block_mask is not None or full_block_mask is not None

    def serves(name: str) -> bool:
        return kernel_takes(name, block_size, groups, masks)

    return choose("routed_attention", impl, ROUTED, serves)(
        q_BTNH,
        k_BSKH,
        v_BSKH,
        z,
        spec,
        block_mask=block_mask,
        full_block_mask=full_block_mask,
        segment_ids=segment_ids,
        lengths=lengths,
    )
