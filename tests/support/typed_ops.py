"""The public ops with their dtypes and axes as types, checked in every call of the tables; letters as in the glossary.

The product does not depend on jaxtyping, so its types stand here. One letter has one size throughout a call.
"""

# ruff: noqa: F722, F821  (axes are names in a string)

import jax
from beartype import beartype
from jaxtyping import Bool, Float, Float32, Int, Shaped, UInt8, UInt32, jaxtyped

import pallas_kernels
from pallas_kernels import CacheView

Array = jax.Array
typed = jaxtyped(typechecker=beartype)
Queries, Keys = Float[Array, "B T N H"], Float[Array, "B S K H"]
Rows = Int[Array, "B S"] | None
Lengths = Int[Array, "B"] | None
BlockMask = Bool[Array, "B N I J"] | None
Choice = Shaped[Array, "B K"] | Shaped[Array, "B M K"]


@typed
def hybrid_attention(
    q: Queries,
    k: Keys,
    v: Keys,
    mode: Choice,
    *,
    block_mask: BlockMask = None,
    full_block_mask: BlockMask = None,
    segment_ids: Rows = None,
    lengths: Lengths = None,
    **options: object,
) -> Queries | tuple[Queries, Float32[Array, "B T N"]]:
    masks = {"block_mask": block_mask, "full_block_mask": full_block_mask}
    return pallas_kernels.hybrid_attention(q, k, v, mode, **masks, segment_ids=segment_ids, lengths=lengths, **options)


@typed
def routed_attention(
    q: Queries,
    k: Keys,
    v: Keys,
    z: Choice,
    *,
    block_mask: BlockMask = None,
    full_block_mask: BlockMask = None,
    segment_ids: Rows = None,
    lengths: Lengths = None,
    **options: object,
) -> Queries:
    masks = {"block_mask": block_mask, "full_block_mask": full_block_mask}
    return pallas_kernels.routed_attention(q, k, v, z, **masks, segment_ids=segment_ids, lengths=lengths, **options)


@typed
def dual_attention(
    q: Queries,
    k: Keys,
    v: Keys,
    *,
    block_mask: BlockMask = None,
    full_block_mask: BlockMask = None,
    segment_ids: Rows = None,
    lengths: Lengths = None,
    **options: object,
) -> tuple[Queries, Queries]:
    masks = {"block_mask": block_mask, "full_block_mask": full_block_mask}
    return pallas_kernels.dual_attention(q, k, v, **masks, segment_ids=segment_ids, lengths=lengths, **options)


@typed
def decode_attention(
    q: Queries, view: CacheView, position: Int[Array, "B"], mode: Int[Array, "B K"], **options: object
) -> Queries:
    return pallas_kernels.decode_attention(q, view, position, mode, **options)


@typed
def select_blocks(
    q: Queries,
    k: Keys,
    *,
    heads: Bool[Array, "B K"] | None = None,
    segment_ids: Rows = None,
    lengths: Lengths = None,
    **options: object,
) -> Bool[Array, "B N I J"]:
    return pallas_kernels.select_blocks(q, k, heads=heads, segment_ids=segment_ids, lengths=lengths, **options)


@typed
def pack(codes: Shaped[Array, "... G H"], **options: object) -> UInt32[Array, "... W H"]:
    return pallas_kernels.pack(codes, **options)


@typed
def unpack(words: UInt32[Array, "... W H"], **options: object) -> UInt8[Array, "... G H"]:
    return pallas_kernels.unpack(words, **options)
