"""Building blocks of the decoder: the embedding, linear maps, RMSNorm, the MLP.

Matrices are applied in the model dtype.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx

from elastic_jax.config import ModelConfig

INPUT_RANKS = {
    "attn.q_proj": 1,
    "attn.k_proj": 1,
    "attn.v_proj": 1,
    "attn.o_proj": 2,
    "mlp.gate_proj": 1,
    "mlp.up_proj": 1,
    "mlp.down_proj": 1,
}
"""The linear maps that a decoder layer may have, routers apart, and how many axes their input spans."""


def aligned(weight: jax.Array, x: jax.Array) -> jax.Array:
    """`weight` with leading axes of size 1, so that it has as many axes as `x` and meets the last ones of it."""
    return jnp.expand_dims(weight, tuple(range(x.ndim - weight.ndim)))


class Embedding(nnx.Module):
    """Token embedding table `[V, D]`; what is looked up is scaled by `multiplier`."""

    def __init__(self, vocab: int, width: int, *, multiplier: float, std: float, dtype: jnp.dtype, rngs: nnx.Rngs):
        self.multiplier = multiplier
        self.embedding = nnx.Param((std * jax.random.normal(rngs.params(), (vocab, width))).astype(dtype))

    def __call__(self, input_ids_BT: jax.Array) -> jax.Array:
        x_BTD = jnp.take(self.embedding[...], input_ids_BT, axis=0, mode="clip")
        return x_BTD if self.multiplier == 1.0 else x_BTD * self.multiplier


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
    """Root-mean-square normalisation over the last axes, those of `shape` together, statistics in float32."""

    def __init__(self, *shape: int, eps: float, dtype: jnp.dtype):
        self.scale = nnx.Param(jnp.ones(shape, dtype))
        self.rank = len(shape)
        self.eps = eps

    def __call__(self, x: jax.Array) -> jax.Array:
        x32 = x.astype(jnp.float32)
        normed = x32 * jax.lax.rsqrt(jnp.mean(x32 * x32, axis=tuple(range(-self.rank, 0)), keepdims=True) + self.eps)
        return aligned(self.scale[...], x) * normed.astype(x.dtype)


class MLP(nnx.Module):
    """`down(activation(gate(x)) * up(x))`, or without a gate `down(activation(up(x)))`."""

    def __init__(self, config: ModelConfig, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        width, hidden = (config.hidden_size,), (config.intermediate_size,)
        linear = partial(Linear, bias=config.mlp_bias, std=config.initializer_range, dtype=dtype, rngs=rngs)
        self.gate_proj = linear(width, hidden) if config.gated_mlp else None
        self.up_proj = linear(width, hidden)
        self.down_proj = linear(hidden, width)
        self.activation = config.activation

    def __call__(self, x_BTD: jax.Array) -> jax.Array:
        activate = _ACTIVATIONS[self.activation]
        if self.gate_proj is None:
            return self.down_proj(activate(self.up_proj(x_BTD)))
        return self.down_proj(activate(self.gate_proj(x_BTD)) * self.up_proj(x_BTD))


def _squared_relu(x: jax.Array) -> jax.Array:
    return jnp.square(jax.nn.relu(x))


_ACTIVATIONS = {"silu": jax.nn.silu, "relu2": _squared_relu}
