"""Which arrays of a model learn, and how they and the frozen ones make the model that a step runs."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from elastic_jax.config import ModelConfig
from elastic_jax.model import ElasticForCausalLM, from_params, to_params
from elastic_jax.reward import SCORE, ElasticRewardModel
from train.reward.config import LoraConfig
from train.reward.lora import fresh_lora, join_lora, merge_lora

Params = dict[str, jax.Array]
_ROUTERS = "layers.router."
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


def split_params(
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
        frozen = {path: x for path, x in arrays.items() if path.startswith(_ROUTERS)}
        params = {path: jnp.array(x, jnp.float32) for path, x in arrays.items() if path not in frozen}
    if isinstance(model, ElasticRewardModel):
        params[SCORE] = jnp.array(model.score_head[...], jnp.float32)
    return assembly, params, frozen
