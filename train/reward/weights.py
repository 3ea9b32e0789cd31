"""Which arrays of a model learn, and how they and the frozen ones make the model that a step runs.

Low-rank adapters (LoRA, arXiv 2106.09685) on the linear maps of a decoder's layers.

Adapters are arrays by dotted path beside the frozen kernels, stacked over the layers as those are: `lora_down`
`[L, *inputs, rank]` and `lora_up` `[L, rank, *outputs]`, float32. They join the model inside a step, so that its layers
still run under one scan, and are added into the kernels for export.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from elastic_jax.config import ModelConfig
from elastic_jax.errors import ConfigError
from elastic_jax.layers import INPUT_RANKS, Linear
from elastic_jax.model import ElasticForCausalLM, from_params, to_params
from elastic_jax.reward import ElasticRewardModel
from elastic_jax.weights.names import ROUTER_PREFIX, SCORE
from train.reward.config import LoraConfig

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

    Raises:
        ConfigError: a map that the model does not have.
    """
    adapters = {}
    if missing := [target for target in targets if f"layers.{target}.kernel" not in shapes]:
        raise ConfigError(f"lora.targets names {', '.join(missing)}, which this model does not have. Leave it out.")
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


Params = dict[str, jax.Array]
_ADAPTERS = ".lora_"


@dataclass(frozen=True)
class Assembly:
    """How trained and frozen arrays become a decoder.

    What learns is float32; kernels are rounded to `dtype` for each step. Routers are frozen: their decisions have no
    gradient.
    """

    config: ModelConfig
    dtype: Any
    lora: LoraConfig

    def decoder(self, params: Mapping[str, jax.Array], frozen: Mapping[str, jax.Array]) -> ElasticForCausalLM:
        """The model that a step runs, with its adapters."""
        model = from_params(self.config, self._backbone(params, frozen))
        if self.lora.rank:
            join_lora(model, params, self.lora.scale)
        return model

    def merged(self, params: Mapping[str, jax.Array], frozen: Mapping[str, jax.Array]) -> Params:
        """Parameters of the plain decoder that computes the same, in `dtype`."""
        backbone = self._backbone(params, frozen)
        return merge_lora(backbone, params, self.lora.scale) if self.lora.rank else backbone

    def _backbone(self, params: Mapping[str, jax.Array], frozen: Mapping[str, jax.Array]) -> Params:
        learnt = {path: x.astype(self.dtype) for path, x in params.items() if path != SCORE and _ADAPTERS not in path}
        return {**frozen, **learnt}


def assemble(
    model: ElasticForCausalLM | ElasticRewardModel, lora: LoraConfig, *, block_size: int | None, seed: int
) -> tuple[Assembly, Params, Params]:
    """(assembly, arrays that learn, frozen arrays) of a model; a score head always learns.

    Args:
        lora: its rank decides whether adapters learn or the whole decoder.
        block_size: replaces the model's.
        seed: of the adapters' first weights.
    """
    decoder = model.decoder if isinstance(model, ElasticRewardModel) else model
    config = decoder.config
    if block_size is not None:
        config = dataclasses.replace(config, router=dataclasses.replace(config.router, block_size=block_size))
    arrays = to_params(decoder)
    assembly = Assembly(config, arrays["embed.embedding"].dtype, lora)
    if lora.rank:
        shapes = {path: x.shape for path, x in arrays.items()}
        params, frozen = fresh_lora(shapes, lora.targets, rank=lora.rank, seed=seed), arrays
    else:
        frozen = {path: x for path, x in arrays.items() if path.startswith(ROUTER_PREFIX)}
        params = {path: jnp.array(x, jnp.float32) for path, x in arrays.items() if path not in frozen}
    if isinstance(model, ElasticRewardModel):
        params[SCORE] = jnp.array(model.score_head[...], jnp.float32)
    return assembly, params, frozen
