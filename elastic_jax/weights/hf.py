"""Opens a Hugging Face directory, plain or in the official Elastic Attention format."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from elastic_jax.config import ModelConfig
from elastic_jax.errors import CheckpointError, ConfigError, shown
from elastic_jax.files import read_json
from elastic_jax.weights.fused import SplitTensors
from elastic_jax.weights.names import ROUTER_PROBE
from elastic_jax.weights.router_only import ROUTER_CONFIG
from elastic_jax.weights.safetensors_dir import open_weights
from elastic_jax.weights.source import Checkpoint
from elastic_jax.weights.tokenizer import GENERATION_CONFIG

CONFIG = "config.json"
ADAPTER_CONFIG = "adapter_config.json"
"""Of LoRA and other adapters of the package peft."""


def open_directory(directory: Path) -> Checkpoint:
    """Opens `config.json` and the safetensors beside it; tensors are read later, one by one.

    Raises:
        CheckpointError: the directory holds no checkpoint, an incomplete one, or an adapter, alone or beside its base
            model.
        ConfigError: a model that this library cannot reproduce.
    """
    if not (directory / CONFIG).exists() and (directory / ROUTER_CONFIG).exists():
        raise CheckpointError(
            f"{directory} holds routers only (no embed, layers.attn, layers.mlp, norm). "
            "Load their base model and pass this directory as router=."
        )
    if (directory / ADAPTER_CONFIG).exists():
        raise CheckpointError(
            f"{directory} holds an adapter ({ADAPTER_CONFIG}), which would be left out. Merge it into its base model "
            "with peft (merge_and_unload) and save that; if the weights there are merged already, remove that file."
        )
    raw = read_json(directory / CONFIG)
    if (directory / GENERATION_CONFIG).is_file():
        raw = _with_end_tokens(raw, directory / GENERATION_CONFIG)
    config = ModelConfig.from_hf(raw)
    source = open_weights(directory)
    probe = source.tensors.get(ROUTER_PROBE)
    if probe is not None and probe.shape[0] % config.head_dim == 0:
        router = dataclasses.replace(config.router, width=probe.shape[0] // config.head_dim)
        config = dataclasses.replace(config, router=router)
    return Checkpoint(str(directory), config, SplitTensors(source, config))


def _with_end_tokens(raw: dict[str, Any], file: Path) -> dict[str, Any]:
    """The configuration with the end-of-text tokens of `generation_config.json`, which transformers prefers as well."""
    ends = read_json(file).get("eos_token_id")
    if ends is None:
        return raw
    for end in ends if isinstance(ends, list) else [ends]:
        if isinstance(end, bool) or not isinstance(end, int) or end < 0:
            raise ConfigError(f"{file} has eos_token_id {shown(ends)}; want the number of a token, or a list of them.")
    return raw | {"eos_token_id": ends}
