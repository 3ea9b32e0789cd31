"""Public entries of the training forms: both branches at once, and the routed mixture."""

from __future__ import annotations

import jax

from pallas_kernels.checks import attention_spec, check_choice, check_qkv, check_rows
from pallas_kernels.dispatch import choose
from pallas_kernels.dual_attention.reference import dual_attention_reference, routed_attention_reference
from pallas_kernels.dual_attention.tpu import dual_attention_tpu, routed_attention_tpu
from pallas_kernels.dual_attention.xla import dual_attention_xla, routed_attention_xla

DUAL = {"reference": dual_attention_reference, "xla": dual_attention_xla, "tpu": dual_attention_tpu}
ROUTED = {"reference": routed_attention_reference, "xla": routed_attention_xla, "tpu": routed_attention_tpu}


def dual_attention(
    q_BTNH: jax.Array,
    k_BSKH: jax.Array,
    v_BSKH: jax.Array,
    *,
    sink_blocks: int = 1,
    local_blocks: int = 16,
    block_size: int = 128,
    segment_ids: jax.Array | None = None,
    lengths: jax.Array | None = None,
    window: int | None = None,
    scale: float | None = None,
    impl: str = "auto",
) -> tuple[jax.Array, jax.Array]:
    """Full and sparse attention of every head, in one pass over the keys. Differentiable in q, k and v.

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
    run = choose("dual_attention", impl, DUAL)
    return run(q_BTNH, k_BSKH, v_BSKH, spec, segment_ids=segment_ids, lengths=lengths)


def routed_attention(
    q_BTNH: jax.Array,
    k_BSKH: jax.Array,
    v_BSKH: jax.Array,
    z: jax.Array,
    *,
    sink_blocks: int = 1,
    local_blocks: int = 16,
    block_size: int = 128,
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
    check_choice("z", z, q_BTNH.shape[0], k_BSKH.shape[2], packed=segment_ids is not None)
    run = choose("routed_attention", impl, ROUTED)
    return run(q_BTNH, k_BSKH, v_BSKH, z, spec, segment_ids=segment_ids, lengths=lengths)
