"""Low-rank adapters (LoRA, arXiv 2106.09685) on the linear maps of a decoder's layers.

Adapters are arrays by dotted path beside the frozen kernels, stacked over the layers as those are: `lora_down`
`[L, *inputs, rank]` and `lora_up` `[L, rank, *outputs]`, float32. They join the model inside a step, so that its layers
still run under one scan, and are added into the kernels for export.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod

import jax
import jax.numpy as jnp
from flax import nnx

from elastic_jax.layers import INPUT_RANKS, Linear
from elastic_jax.model import ElasticForCausalLM

_DOWN, _UP = "lora_down", "lora_up"


class LoraLinear(nnx.Module):
    """`base(x) + scale * up(down(x))`; what the adapters add is summed in float32 and rounded to the dtype of x."""

    def __init__(self, base: Linear, down: jax.Array, up: jax.Array, scale: float):
        self.base = base
        self.down, self.up = nnx.Param(down), nnx.Param(up)
        self.scale = scale

    def __call__(self, x: jax.Array) -> jax.Array:
        down = self.down[...].astype(x.dtype)
        low = jnp.tensordot(x, down, axes=self.base.input_rank, preferred_element_type=jnp.float32)
        return self.base(x) + (self.scale * jnp.tensordot(low, self.up[...], axes=1)).astype(x.dtype)


def fresh_lora(
    shapes: Mapping[str, Sequence[int]], targets: Sequence[str], *, rank: int, seed: int
) -> dict[str, jax.Array]:
    """Adapters that change nothing yet: `lora_down` N(0, 1 / inputs), `lora_up` zeros.

    Args:
        shapes: shape of every parameter of the model by dotted path.
        targets: keys of `INPUT_RANKS`.
    """
    adapters = {}
    for number, target in enumerate(targets):
        layers, *kernel = shapes[f"layers.{target}.kernel"]
        inputs, outputs = kernel[: INPUT_RANKS[target]], kernel[INPUT_RANKS[target] :]
        key = jax.random.fold_in(jax.random.key(seed), number)
        drawn = jax.random.normal(key, (layers, *inputs, rank)) * prod(inputs) ** -0.5
        adapters[f"layers.{target}.{_DOWN}"] = drawn
        adapters[f"layers.{target}.{_UP}"] = jnp.zeros((layers, rank, *outputs))
    return adapters


def join_lora(model: ElasticForCausalLM, adapters: Mapping[str, jax.Array], scale: float) -> None:
    """Puts adapters around the linear maps that they belong to; the model is changed in place."""
    for target in _targets(adapters):
        parent_name, name = target.split(".")
        parent = getattr(model.layers, parent_name)
        down, up = (adapters[f"layers.{target}.{part}"] for part in (_DOWN, _UP))
        setattr(parent, name, LoraLinear(getattr(parent, name), down, up, scale))


def merge_lora(
    params: Mapping[str, jax.Array], adapters: Mapping[str, jax.Array], scale: float
) -> dict[str, jax.Array]:
    """Parameters whose kernels hold what the adapters added: one rounding to the kernel's dtype, from float32."""
    merged = dict(params)
    for target in _targets(adapters):
        path = f"layers.{target}.kernel"
        kernel = params[path]
        down, up = (adapters[f"layers.{target}.{part}"] for part in (_DOWN, _UP))
        layers, rank = up.shape[:2]
        change = down.reshape(layers, -1, rank) @ up.reshape(layers, rank, -1)
        merged[path] = (kernel.astype(jnp.float32) + scale * change.reshape(kernel.shape)).astype(kernel.dtype)
    return merged


def _targets(adapters: Mapping[str, jax.Array]) -> list[str]:
    return [target for target in INPUT_RANKS if f"layers.{target}.{_UP}" in adapters]
