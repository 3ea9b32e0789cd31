"""Rotary position embeddings: the frequency rules of the Hugging Face `rope_type`s, computed per token."""

from __future__ import annotations

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from elastic_jax.config import ModelConfig, RopeConfig


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class RopeTables:
    """Cosines and sines of every token for each kind of layer, and the factor on its query where there is one."""

    cos_RBTh: jax.Array
    sin_RBTh: jax.Array
    table_L: jax.Array | None
    """Which table each layer takes; None where there is one."""
    query_scale_BT: jax.Array | None

    def rotate(self, layer: jax.Array | int, q_BTNH: jax.Array, k_BTKH: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Queries and keys, rotated as the layer with this index does."""
        table = 0 if self.table_L is None else self.table_L[layer]
        q, k = (apply_rope(x, self.cos_RBTh[table], self.sin_RBTh[table]) for x in (q_BTNH, k_BTKH))
        if self.query_scale_BT is not None:
            q = q * self.query_scale_BT[..., None, None].astype(q.dtype)
        return q, k


def rope_tables(config: ModelConfig, positions_BT: jax.Array, seq_len_BT: jax.Array) -> RopeTables:
    """The rotations of all layers of a model for these positions; see `rope_table` for the arguments.

    A layer without rope takes a table that rotates by nothing, so that all layers run the same program.
    """
    table = rope_table(config.rope, config.rotary_dim, positions_BT, seq_len_BT, config.max_position_embeddings)
    cos, sin = (x[None] for x in table)
    scale, rope = None, config.rope
    if rope.query_scaling is not None:
        periods = positions_BT // _original(rope, config.max_position_embeddings)
        scale = 1.0 + rope.query_scaling * jnp.log1p(periods.astype(jnp.float32))
    if config.rope_layers is None:
        return RopeTables(cos, sin, None, scale)
    cos, sin = jnp.concatenate([jnp.ones_like(cos), cos]), jnp.concatenate([jnp.zeros_like(sin), sin])
    return RopeTables(cos, sin, jnp.asarray(config.rope_layers, jnp.int32), scale)


def rope_table(
    rope: RopeConfig, rotary_dim: int, positions_BT: jax.Array, seq_len_BT: jax.Array, max_position_embeddings: int
) -> tuple[jax.Array, jax.Array]:
    """Cosines and sines for every token, float32 `[B, T, rotary_dim / 2]`.

    `seq_len_BT` is the length of the sequence that each token belongs to: `dynamic` and `longrope` switch their
    frequencies on it, so that a packed or padded row gives the same result as the sequence alone.
    """
    frequencies = _frequencies(rope, rotary_dim, seq_len_BT, max_position_embeddings)
    frequencies_BTh = jnp.broadcast_to(frequencies, (*positions_BT.shape, frequencies.shape[-1]))
    angles = positions_BT[..., None].astype(jnp.float32) * frequencies_BTh
    scale = attention_scale(rope, max_position_embeddings)
    return jnp.cos(angles) * scale, jnp.sin(angles) * scale


def apply_rope(x_BTNH: jax.Array, cos_BTh: jax.Array, sin_BTh: jax.Array) -> jax.Array:
    """Rotates the two halves of each head (half-split layout), in float32, and returns the dtype of `x`.

    Where cosines are there for a part of the channels, the first ones rotate and the others stay.
    """
    half = cos_BTh.shape[-1]
    first, second, rest = jnp.split(x_BTNH.astype(jnp.float32), (half, 2 * half), axis=-1)
    cos, sin = cos_BTh[:, :, None], sin_BTh[:, :, None]
    rotated = jnp.concatenate([first * cos - second * sin, second * cos + first * sin, rest], axis=-1)
    return rotated.astype(x_BTNH.dtype)


def attention_scale(rope: RopeConfig, max_position_embeddings: int) -> float:
    """Factor on cosines and sines (YaRN and LongRoPE; 1 for the others)."""
    if rope.type not in ("yarn", "longrope"):
        return 1.0
    if rope.attention_factor is not None:
        return rope.attention_factor
    factor = rope.extension(max_position_embeddings)
    if factor <= 1.0:
        return 1.0
    if rope.type == "longrope":
        return math.sqrt(1.0 + math.log(factor) / math.log(_original(rope, max_position_embeddings)))
    if rope.mscale and rope.mscale_all_dim:
        return (0.1 * rope.mscale * math.log(factor) + 1.0) / (0.1 * rope.mscale_all_dim * math.log(factor) + 1.0)
    return 0.1 * math.log(factor) + 1.0


def _frequencies(
    rope: RopeConfig, rotary_dim: int, seq_len_BT: jax.Array, max_position_embeddings: int
) -> np.ndarray | jax.Array:
    """Radians per position, `[h]`, or `[B, T, h]` where they depend on the sequence length; h = rotary_dim / 2."""
    exponents = np.arange(0, rotary_dim, 2, dtype=np.float32) / rotary_dim
    base = (1.0 / rope.theta**exponents).astype(np.float32)
    if rope.type == "default":
        return base
    if rope.type == "linear":
        return base / np.float32(rope.extension(max_position_embeddings))
    if rope.type == "llama3":
        return _llama3(rope, base, max_position_embeddings)
    if rope.type == "yarn":
        return _yarn(rope, base, rotary_dim, max_position_embeddings)
    if rope.type == "dynamic":
        length = jnp.maximum(seq_len_BT, max_position_embeddings).astype(jnp.float32)[..., None]
        factor = rope.extension(max_position_embeddings)
        growth = factor * length / max_position_embeddings - (factor - 1.0)
        theta = rope.theta * growth ** (rotary_dim / (rotary_dim - 2))
        return theta ** -exponents[None, None]
    short = base / np.asarray(rope.short_factor, np.float32)
    long = base / np.asarray(rope.long_factor, np.float32)
    return jnp.where((seq_len_BT > _original(rope, max_position_embeddings))[..., None], long, short)


def _original(rope: RopeConfig, max_position_embeddings: int) -> int:
    return rope.original_max_position or max_position_embeddings


def _llama3(rope: RopeConfig, base: np.ndarray, max_position_embeddings: int) -> np.ndarray:
    original, factor = _original(rope, max_position_embeddings), rope.extension(max_position_embeddings)
    wavelength = 2 * math.pi / base
    blend = (original / wavelength - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor)
    blend = np.clip(blend, 0.0, 1.0)
    return (blend * base + (1.0 - blend) * base / factor).astype(np.float32)


def _yarn(rope: RopeConfig, base: np.ndarray, rotary_dim: int, max_position_embeddings: int) -> np.ndarray:
    original = _original(rope, max_position_embeddings)

    def dimension(rotations: float) -> float:
        return rotary_dim * math.log(original / (rotations * 2 * math.pi)) / (2 * math.log(rope.theta))

    low, high = dimension(rope.beta_fast or 32.0), dimension(rope.beta_slow or 1.0)
    if rope.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, rotary_dim - 1)
    ramp = np.clip((np.arange(rotary_dim // 2, dtype=np.float32) - low) / max(high - low, 0.001), 0.0, 1.0)
    interpolated = base / np.float32(rope.extension(max_position_embeddings))
    return (interpolated * ramp + base * (1.0 - ramp)).astype(np.float32)
