"""Argument checks shared by the attention ops: each error says what, got, wanted and what to do."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels.blocks import Geometry
from pallas_kernels.schedule import AttentionSpec


def attention_spec(
    head_dim: int, *, sink_blocks: int, local_blocks: int, block_size: int, window: int | None, scale: float | None
) -> AttentionSpec:
    """Checks the static parameters; `scale` None becomes 1 / sqrt(head_dim)."""
    for name, value, least in (
        ("sink_blocks", sink_blocks, 0),
        ("local_blocks", local_blocks, 1),
        ("block_size", block_size, 1),
        ("window", window, 1),
    ):
        if value is not None and value < least:
            raise ValueError(f"{name} is {value}; wanted at least {least}.")
    scale = head_dim**-0.5 if scale is None else float(scale)
    if not scale > 0:
        raise ValueError(f"scale is {scale}; wanted a positive number. Leave it out for 1 / sqrt(head_dim).")
    return AttentionSpec(sink_blocks, local_blocks, block_size, window, scale)


def check_qkv(q: jax.Array, k: jax.Array, v: jax.Array) -> None:
    """q `[B, T, N, H]`; k and v `[B, S, K, H]`; T <= S; K divides N."""
    for name, x in (("q", q), ("k", k), ("v", v)):
        if x.ndim != 4 or 0 in x.shape:
            raise ValueError(f"{name} has shape {x.shape}; wanted four non-empty axes: batch, tokens, heads, head_dim.")
        if not jnp.issubdtype(x.dtype, jnp.floating):
            raise ValueError(f"{name} is {x.dtype}; wanted a floating type.")
    if k.shape != v.shape or q.dtype != k.dtype or k.dtype != v.dtype:
        raise ValueError(f"k is {k.dtype}{k.shape} and v {v.dtype}{v.shape}; wanted one shape and q's type {q.dtype}.")
    if q.shape[0] != k.shape[0] or q.shape[3] != k.shape[3]:
        raise ValueError(f"q has shape {q.shape} and k {k.shape}; batch and head_dim must agree.")
    if q.shape[2] % k.shape[2]:
        raise ValueError(
            f"q has {q.shape[2]} heads and k has {k.shape[2]}; query heads must be a multiple of KV heads. "
            "Check num_attention_heads and num_key_value_heads."
        )
    if q.shape[1] > k.shape[1]:
        raise ValueError(f"{q.shape[1]} queries but {k.shape[1]} keys; queries are the last positions of the keys.")


def check_rows(
    batch: int, keys: int, block_size: int, segment_ids: jax.Array | None, lengths: jax.Array | None
) -> None:
    """segment_ids `[B, S]`, each segment one run that starts on a block boundary; lengths `[B]`."""
    if lengths is not None and lengths.shape != (batch,):
        raise ValueError(f"lengths has shape {lengths.shape}; wanted ({batch},): valid tokens of each row.")
    if segment_ids is None:
        return
    if segment_ids.shape != (batch, keys):
        raise ValueError(
            f"segment_ids has shape {segment_ids.shape}; wanted {(batch, keys)}, one id for each key token "
            "(1, 2, ...; 0 for padding)."
        )
    if isinstance(segment_ids, jax.core.Tracer):
        return
    ids = np.pad(np.asarray(segment_ids), ((0, 0), (1, 0)))
    row, token = np.nonzero((ids[:, 1:] != ids[:, :-1]) & (ids[:, 1:] != 0))
    late = token % block_size != 0
    again = np.ones(len(row), bool)
    again[np.unique(np.stack([row, ids[row, token + 1]]), axis=1, return_index=True)[1]] = False
    late |= again
    if late.any():
        b, t = int(row[late][0]), int(token[late][0])
        raise ValueError(
            f"segment {ids[b, t + 1]} of row {b} starts (or resumes) at token {t}; segments must be one run that "
            f"starts on a multiple of block_size={block_size}. Pad the segment before it with id 0."
        )


def check_choice(name: str, choice: jax.Array, batch: int, kv_heads: int, packed: bool) -> None:
    """A value for each head: `[B, K]`, or `[B, M, K]` for packed rows, each 0 or 1."""
    wanted = f"({batch}, {kv_heads})" + (f" or ({batch}, segments, {kv_heads})" if packed else "")
    dims = (2, 3) if packed else (2,)
    if choice.ndim not in dims or choice.shape[0] != batch or choice.shape[-1] != kv_heads or 0 in choice.shape:
        hint = "" if packed else " A mode per segment needs segment_ids."
        raise ValueError(f"{name} has shape {choice.shape}; wanted {wanted}.{hint}")
    if not isinstance(choice, jax.core.Tracer):
        values = np.asarray(choice)
        if not np.isin(values, (0, 1)).all():
            bad = values[~np.isin(values, (0, 1))].ravel()[0]
            raise ValueError(f"{name} holds {bad}; wanted only 0 and 1.")


def check_block_masks(
    q: jax.Array, k: jax.Array, block_size: int, block_mask: jax.Array | None, full_block_mask: jax.Array | None
) -> None:
    """Boolean masks of key blocks for each query head and query block."""
    geometry = Geometry(block_size, q.shape[1], k.shape[1])
    shape = (q.shape[0], q.shape[2], geometry.query_blocks, geometry.key_blocks)
    for name, mask in (("block_mask", block_mask), ("full_block_mask", full_block_mask)):
        if mask is not None and (mask.shape != shape or mask.dtype != jnp.bool_):
            raise ValueError(
                f"{name} is {mask.dtype}{mask.shape}; wanted bool{shape}: batch, query heads, query blocks, key blocks."
            )
