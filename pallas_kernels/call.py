"""The arguments of an attention op, checked and in one bundle; each error says what, got, wanted and what to do."""

from __future__ import annotations

from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels.blocks import Geometry, RowLayout, describe_rows
from pallas_kernels.schedule import AttentionSpec


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class AttentionCall:
    """What every implementation of `hybrid_attention`, `dual_attention` and `routed_attention` gets.

    Made by `check_attention`.
    """

    q_BTNH: jax.Array
    k_BSKH: jax.Array
    v_BSKH: jax.Array
    spec: AttentionSpec = field(metadata={"static": True})
    block_mask: jax.Array | None = None
    """bool `[B, N, query blocks, key blocks]`: what sparse heads see instead of sinks and local blocks."""
    full_block_mask: jax.Array | None = None
    """The same for full heads, instead of everything."""
    segment_ids: jax.Array | None = None
    """int `[B, S]`: the sequence of each key token, 0 for padding."""
    lengths: jax.Array | None = None
    """int `[B]`: valid leading tokens of each row."""
    return_lse: bool = field(default=False, metadata={"static": True})
    """Whether the log-sum-exp is wanted. An implementation may return None for it otherwise."""

    @property
    def kv_heads(self) -> int:
        return self.k_BSKH.shape[2]

    @property
    def groups(self) -> int:
        """Query heads of a KV head."""
        return self.q_BTNH.shape[2] // self.kv_heads

    @property
    def has_masks(self) -> bool:
        return self.block_mask is not None or self.full_block_mask is not None

    @property
    def geometry(self) -> Geometry:
        return Geometry(self.spec.block_size, self.q_BTNH.shape[1], self.k_BSKH.shape[1])

    def rows(self, geometry: Geometry | None = None) -> RowLayout:
        """Where the sequences lie, by the blocks of `geometry`; its own by default."""
        return describe_rows(self.k_BSKH.shape[0], geometry or self.geometry, self.lengths, self.segment_ids)

    def every_head(self, sparse: bool) -> jax.Array:
        """`[B, K]`, the same for every row and KV head."""
        return jnp.full((self.k_BSKH.shape[0], self.kv_heads), sparse)

    def check_choice(self, name: str, choice: jax.Array) -> None:
        """Refuses a value for each head that is not `[B, K]` (or `[B, M, K]` for packed rows) of 0 and 1."""
        check_choice(name, choice, self.k_BSKH.shape[0], self.kv_heads, packed=self.segment_ids is not None)
        if self.segment_ids is None or choice.ndim == 2 or isinstance(self.segment_ids, jax.core.Tracer):
            return
        most = int(np.asarray(self.segment_ids).max())
        if most > choice.shape[1]:
            raise ValueError(
                f"segment_ids holds {most} and {name} has shape {choice.shape}, {choice.shape[1]} segments; wanted one "
                "for every segment (segment s uses index s - 1). Lengthen axis 1, or number the segments from 1."
            )


def check_attention(
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
    return_lse: bool = False,
) -> AttentionCall:
    """Checks operands and options of an attention op, which are those of `hybrid_attention`.

    Raises:
        ValueError: a shape, a segment start or an option that does not fit.
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
    check_rows(k_BSKH.shape[0], k_BSKH.shape[1], block_size, segment_ids, lengths)
    call = AttentionCall(q_BTNH, k_BSKH, v_BSKH, spec, block_mask, full_block_mask, segment_ids, lengths, return_lse)
    shape = (q_BTNH.shape[0], q_BTNH.shape[2], call.geometry.query_blocks, call.geometry.key_blocks)
    for name, mask in (("block_mask", block_mask), ("full_block_mask", full_block_mask)):
        if mask is not None and (mask.shape != shape or mask.dtype != jnp.bool_):
            raise ValueError(
                f"{name} is {mask.dtype}{mask.shape}; wanted bool{shape}: batch, query heads, query blocks, key blocks."
            )
    return call


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
    """Checks which tokens are valid: segment_ids `[batch, keys]`, each segment one run that starts on a block boundary;
    lengths `[batch]`.

    Raises:
        ValueError: another shape or, where the values are known, values that do not fit.
    """
    for name, x in (("lengths", lengths), ("segment_ids", segment_ids)):
        if x is not None and not jnp.issubdtype(x.dtype, jnp.integer):
            raise ValueError(f"{name} is {x.dtype}; wanted an integer type.")
    if lengths is not None and lengths.shape != (batch,):
        raise ValueError(f"lengths has shape {lengths.shape}; wanted ({batch},): valid tokens of each row.")
    if lengths is not None and not isinstance(lengths, jax.core.Tracer):
        known = np.asarray(lengths)
        if ((known < 0) | (known > keys)).any():
            raise ValueError(f"lengths is {known.tolist()}; wanted values from 0 to {keys}, the tokens of a row.")
    if segment_ids is None:
        return
    if segment_ids.shape != (batch, keys):
        raise ValueError(
            f"segment_ids has shape {segment_ids.shape}; wanted {(batch, keys)}, one id for each key token "
            "(1, 2, ...; 0 for padding)."
        )
    if isinstance(segment_ids, jax.core.Tracer):
        return  # in a compiled program the values are not known yet
    ids = np.pad(np.asarray(segment_ids), ((0, 0), (1, 0)))
    if (ids < 0).any():
        raise ValueError(f"segment_ids holds {ids.min()}; wanted 1, 2, ... for segments and 0 for padding.")
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
