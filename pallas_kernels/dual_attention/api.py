"""Public entries of the training forms: both branches at once, and the routed mixture."""

from __future__ import annotations

from functools import partial

import jax

from pallas_kernels.call import check_attention
from pallas_kernels.dispatch import choose, compiled, deferred, kernel_takes
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
    )
    return compiled(choose("dual_attention", impl, DUAL, partial(kernel_takes, call=call)))(call)


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
    )
    call.check_choice("z", z)
    # The one place where gates become modes. Behind it z only stands for its gradient.
    sparse = ~(z > 0.5)
    return compiled(choose("routed_attention", impl, ROUTED, partial(kernel_takes, call=call)))(call, z, sparse)
