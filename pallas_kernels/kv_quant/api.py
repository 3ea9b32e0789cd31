"""Public entries of cache quantisation: checks, then dispatch."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from pallas_kernels.dispatch import choose, compiled
from pallas_kernels.kv_quant import reference, xla
from pallas_kernels.kv_quant.xla import WORD_BITS

QUANTIZE = {"reference": reference.quantize_group_reference, "xla": xla.quantize_group_xla}
DEQUANTIZE = {"reference": reference.dequantize_group_reference, "xla": xla.dequantize_group_xla}
PACK = {"reference": reference.pack_reference, "xla": xla.pack_xla}
UNPACK = {"reference": reference.unpack_reference, "xla": xla.unpack_xla}


def quantize_group(
    x: jax.Array,
    *,
    axis: int,
    bits: int,
    valid: jax.Array | None = None,
    metadata_dtype: DTypeLike = jnp.float32,
    impl: str = "auto",
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Asymmetric min-max quantisation (KIVI, arXiv 2402.02750): code = round((x - zero) / scale), half to even.

    The whole `axis` is one group: zero is its least valid element, scale its range / (2^bits - 1). Codes are made
    with scale and zero as rounded to `metadata_dtype`, so that what is stored is what is read. A group of equal
    elements has scale 0 and codes 0.

    Args:
        x: floating array of any shape; statistics are float32.
        axis: axis of the group.
        bits: 1, 2, 4 or 8.
        valid: bool, broadcastable to x. Elements that are not valid change neither scale nor zero and get code 0.
        metadata_dtype: type of scale and zero.
        impl: "auto", "reference" or "xla".

    Returns:
        uint8 codes of the shape of x; scale and zero, its shape without `axis`.

    Raises:
        ValueError: an option or type that is not offered, or an empty group.
    """
    _check_bits(bits)
    _check_axis("x", x, axis)
    for name, dtype in (("x", x.dtype), ("metadata_dtype", jnp.dtype(metadata_dtype))):
        if not jnp.issubdtype(dtype, jnp.floating):
            raise ValueError(f"{name} is {dtype}; wanted a floating type.")
    if valid is not None:
        if valid.dtype != jnp.bool_ or jnp.broadcast_shapes(valid.shape, x.shape) != x.shape:
            raise ValueError(f"valid is {valid.dtype}{valid.shape}; wanted bool, broadcastable to {x.shape}.")
    return choose("quantize_group", impl, QUANTIZE)(x, valid, axis % x.ndim, bits, metadata_dtype)


def dequantize_group(
    codes: jax.Array, scale: jax.Array, zero: jax.Array, *, axis: int, impl: str = "auto"
) -> jax.Array:
    """codes * scale + zero in float32: the inverse of `quantize_group` up to half a scale.

    Raises:
        ValueError: scale or zero do not have the shape of the codes without `axis`.
    """
    _check_axis("codes", codes, axis)
    wanted = codes.shape[: axis % codes.ndim] + codes.shape[axis % codes.ndim + 1 :]
    for name, x in (("scale", scale), ("zero", zero)):
        if x.shape != wanted:
            raise ValueError(f"{name} has shape {x.shape}; wanted {wanted}: codes {codes.shape} without axis {axis}.")
    return choose("dequantize_group", impl, DEQUANTIZE)(codes, scale, zero, axis % codes.ndim)


def pack(codes: jax.Array, *, bits: int, impl: str = "auto") -> jax.Array:
    """Packs codes `[..., tokens, channels]` into uint32 words `[..., rows, channels]`, rows = tokens * bits / 32.

    Planar: bits `[bits * j, bits * (j + 1))` of row r hold token rows * j + r, so that each shift of a tile yields
    `rows` whole consecutive tokens. 128 tokens of 2 bits are 8 rows: with 128 channels one TPU register.

    Codes outside `[0, 2^bits)` are refused; a compiled program, which cannot refuse, keeps their lowest bits.

    Raises:
        ValueError: bits not offered, codes that are no integers or out of range, or tokens that do not fill words.
    """
    _check_bits(bits)
    _check_tile("codes", codes)
    if not jnp.issubdtype(codes.dtype, jnp.integer):
        raise ValueError(f"codes are {codes.dtype}; wanted an integer type.")
    if codes.shape[-2] % (WORD_BITS // bits):
        raise ValueError(f"{codes.shape[-2]} tokens of {bits} bits; wanted a multiple of {WORD_BITS // bits} tokens.")
    if not isinstance(codes, jax.core.Tracer):
        known = np.asarray(codes)
        least, most = int(known.min(initial=0)), int(known.max(initial=0))
        if least < 0 or most >= 2**bits:
            raise ValueError(f"codes run from {least} to {most}; wanted 0 to {2**bits - 1}, what {bits} bits hold.")
    return compiled(choose("pack", impl, PACK), (1,))(codes, bits)


def unpack(words: jax.Array, *, bits: int, impl: str = "auto") -> jax.Array:
    """Inverse of `pack`: uint8 codes `[..., tokens, channels]` of uint32 words `[..., rows, channels]`.

    Raises:
        ValueError: bits not offered, or words of another type.
    """
    _check_bits(bits)
    _check_tile("words", words)
    if words.dtype != jnp.uint32:
        raise ValueError(f"words are {words.dtype}; wanted uint32.")
    return compiled(choose("unpack", impl, UNPACK), (1,))(words, bits)


def _check_bits(bits: int) -> None:
    if bits not in (1, 2, 4, 8):
        raise ValueError(f"bits is {bits}; wanted 1, 2, 4 or 8.")


def _check_axis(name: str, x: jax.Array, axis: int) -> None:
    if not -x.ndim <= axis < x.ndim or x.shape[axis] == 0:
        raise ValueError(f"{name} has shape {x.shape}; wanted at least one element along axis {axis}.")


def _check_tile(name: str, x: jax.Array) -> None:
    if x.ndim < 2 or 0 in x.shape[-2:]:
        raise ValueError(f"{name} have shape {x.shape}; wanted [..., tokens, channels], neither empty.")
