"""Decode attention on NVIDIA GPUs from compute capability 8.0, in Triton.

The cache is split over the sequence (flash decoding), so that a short batch fills the chip: one program takes the exact
tokens of a (row, KV head), the others equal shares of its groups, however many those are at run time.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from pallas_kernels.decode_attention.plan import group_runs, token_limits
from pallas_kernels.decode_attention.view import CacheView, fold_query_heads, unfold_query_heads
from pallas_kernels.gpu.decode import DecodeSizes, decode_kernel
from pallas_kernels.gpu.launch import launch
from pallas_kernels.gpu.tuning import SMALLEST_TILE, padded
from pallas_kernels.schedule import AttentionSpec

PROGRAMS = 1024
"""Programs that fill a large chip (H100: 132 multiprocessors, eight small programs on each)."""
LEAST_GROUPS = 4
"""Fewest groups for which another program pays for its partial result."""
MOST_ROWS = 64
WIDEST_HEAD = 256


def why_not(q: jax.Array, view: CacheView) -> str | None:
    """What keeps a case from running here; None if nothing does."""
    group, rows = view.pages.group, q.shape[1] * q.shape[2] // view.table_BKJ.shape[1]
    if group & (group - 1):
        return f"The GPU kernel needs groups of a power of two of tokens; got {group}. Use impl='xla'."
    if q.shape[3] > WIDEST_HEAD:
        return f"The GPU kernel takes head_dim up to {WIDEST_HEAD}; got {q.shape[3]}. Use impl='xla'."
    if rows > MOST_ROWS:
        return (
            f"The GPU kernel takes up to {MOST_ROWS} queries times query heads for each KV head; got {rows}. "
            "Use fewer queries, or impl='xla'."
        )
    return None


def parts_of(heads: int, groups: int) -> int:
    """Programs for each (row, KV head) of `heads` in all, whose tables hold `groups` groups."""
    return 1 + max(1, min(PROGRAMS // heads, groups // LEAST_GROUPS))


def decode_attention_triton(
    q_BTNH: jax.Array, view: CacheView, position_B: jax.Array, sparse_BK: jax.Array, spec: AttentionSpec
) -> jax.Array:
    """See `decode_attention`."""
    refusal = why_not(q_BTNH, view)
    if refusal is not None:
        raise NotImplementedError(refusal)
    T, H = q_BTNH.shape[1], q_BTNH.shape[3]
    B, K, J = view.table_BKJ.shape
    pages = view.pages
    q_BKRH = fold_query_heads(q_BTNH, K)
    R = q_BKRH.shape[2]
    wide = jnp.float32 in (q_BTNH.dtype, view.exact_k_BKEH.dtype)
    q_BKRH = q_BKRH.astype(jnp.float32) if wide else q_BKRH
    parts = parts_of(B * K, J)
    channels = H // pages.v_scale.shape[-1]
    words = pages.k_codes.shape[1]
    head_pad, row_pad = padded(H), padded(R)
    arguments = {f"{name}_ptr": x for name, x in pages._asdict().items() if x is not None} | {
        "q_ptr": q_BKRH,
        "table_ptr": view.table_BKJ,
        "runs_ptr": group_runs(sparse_BK, position_B, view.quantized_B, pages.group, spec),
        "limits_ptr": token_limits(sparse_BK, position_B, T, spec),
        "exact_k_ptr": view.exact_k_BKEH,
        "exact_v_ptr": view.exact_v_BKEH,
        "exact_pos_ptr": view.exact_pos_BKE,
        "groups": J,
        "slots": view.exact_pos_BKE.shape[2],
        "scale": spec.scale,
    }
    statistic = jax.ShapeDtypeStruct((B, K, parts, R), jnp.float32)
    written = launch(
        decode_kernel,
        B * K * parts * (H // channels),
        arguments,
        {
            "acc_ptr": jax.ShapeDtypeStruct((*statistic.shape, H), jnp.float32),
            "top_ptr": statistic,
            "total_ptr": statistic,
        },
        warps=warps_of(head_pad, row_pad),
        stages=3,
        constants={
            "SIZES": DecodeSizes(
                HEAD=H,
                HEAD_PAD=head_pad,
                CHANNELS=channels,
                CHANNELS_PAD=padded(channels),
                GROUP=pages.group,
                WORDS=words,
                ROWS=max(SMALLEST_TILE, words),
                BITS=pages.bits,
                NORM=pages.k_norm is not None,
                WIDE=wide,
                T=T,
                R=R,
                R_PAD=row_pad,
                KEYS=64,
                PARTS=parts,
                SINK_END=spec.sink_blocks * spec.block_size,
            )
        },
    )
    out = merge_parts(written["acc_ptr"], written["top_ptr"], written["total_ptr"])
    return unfold_query_heads(out, T).astype(q_BTNH.dtype)


def warps_of(head_pad: int, row_pad: int) -> int:
    """Warps enough to hold the accumulators and unpacked codes of a tile in registers, by their machine code."""
    if row_pad > SMALLEST_TILE:
        return 8
    return 2 if head_pad <= 64 else 4


def merge_parts(acc_BKPRH: jax.Array, top_BKPR: jax.Array, total_BKPR: jax.Array) -> jax.Array:
    """Output `[B, K, R, H]` of softmax parts with their own maxima (of base-2 scores); a part may have seen nothing."""
    weight_BKPR = jnp.exp2(top_BKPR - top_BKPR.max(2, keepdims=True))
    total_BKR = (total_BKPR * weight_BKPR).sum(2)
    return (acc_BKPRH * weight_BKPR[..., None]).sum(2) / jnp.maximum(total_BKR, 1e-30)[..., None]
