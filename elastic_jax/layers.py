"""Building blocks of the decoder: the embedding, linear maps, RMSNorm, the gated MLP.

Matrices are applied in the model dtype.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

INPUT_RANKS = {
    "attn.q_proj": 1,
    "attn.k_proj": 1,
    "attn.v_proj": 1,
    "attn.o_proj": 2,
    "mlp.gate_proj": 1,
    "mlp.up_proj": 1,
    "mlp.down_proj": 1,
}
"""The linear maps of a decoder layer, routers apart, and how many axes their input spans."""


def aligned(weight: jax.Array, x: jax.Array) -> jax.Array:
    """`weight` with leading axes of size 1, so that it has as many axes as `x` and meets the last ones of it."""
    return jnp.expand_dims(weight, tuple(range(x.ndim - weight.ndim)))


class Embedding(nnx.Module):
    """Token embedding table `[V, D]`."""

    def __init__(self, vocab: int, width: int, *, std: float, dtype: jnp.dtype, rngs: nnx.Rngs):
        self.embedding = nnx.Param((std * jax.random.normal(rngs.params(), (vocab, width))).astype(dtype))

    def __call__(self, input_ids_BT: jax.Array) -> jax.Array:
        return jnp.take(self.embedding[...], input_ids_BT, axis=0, mode="clip")


class Linear(nnx.Module):
    """`y = x · kernel + bias`; `inputs` and `outputs` may span several axes, such as (heads, head_dim)."""

    def __init__(
        self,
        inputs: tuple[int, ...],
        outputs: tuple[int, ...],
        *,
        bias: bool = False,
        std: float = 0.02,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        kernel = std * jax.random.normal(rngs.params(), (*inputs, *outputs), jnp.float32)
        self.kernel = nnx.Param(kernel.astype(dtype))
        self.bias = nnx.Param(jnp.zeros(outputs, dtype)) if bias else None
        self.input_rank = len(inputs)

    def __call__(self, x: jax.Array) -> jax.Array:
        kernel = self.kernel[...]
        y = jnp.tensordot(x, kernel, axes=self.input_rank)
        return y if self.bias is None else y + aligned(self.bias[...], y)


class RMSNorm(nnx.Module):
    """Root-mean-square normalisation over the last axis, statistics in float32."""

    def __init__(self, width: int, *, eps: float, dtype: jnp.dtype):
        self.scale = nnx.Param(jnp.ones((width,), dtype))
        self.eps = eps

    def __call__(self, x: jax.Array) -> jax.Array:
        x32 = x.astype(jnp.float32)
        normed = x32 * jax.lax.rsqrt(jnp.mean(x32 * x32, axis=-1, keepdims=True) + self.eps)
        return aligned(self.scale[...], x) * normed.astype(x.dtype)


class GatedMLP(nnx.Module):
    """SwiGLU: `down(silu(gate(x)) * up(x))`."""

    def __init__(self, width: int, hidden: int, *, std: float, dtype: jnp.dtype, rngs: nnx.Rngs):
        self.gate_proj = Linear((width,), (hidden,), std=std, dtype=dtype, rngs=rngs)
        self.up_proj = Linear((width,), (hidden,), std=std, dtype=dtype, rngs=rngs)
        self.down_proj = Linear((hidden,), (width,), std=std, dtype=dtype, rngs=rngs)

    def __call__(self, x_BTD: jax.Array) -> jax.Array:
        return self.down_proj(jax.nn.silu(self.gate_proj(x_BTD)) * self.up_proj(x_BTD))
