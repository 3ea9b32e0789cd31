"""Opening a Hugging Face directory, plain or in the official Elastic Attention format."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from elastic_jax.config import ModelConfig
from elastic_jax.errors import CheckpointError
from elastic_jax.files import read_json
from elastic_jax.weights.names import ROUTER_PROBE
from elastic_jax.weights.router_only import ROUTER_CONFIG
from elastic_jax.weights.safetensors_dir import open_weights
from elastic_jax.weights.source import Checkpoint

CONFIG = "config.json"


def open_directory(directory: Path) -> Checkpoint:
    """Opens `config.json` and the safetensors beside it; tensors are read later, one by one.

    Raises:
        CheckpointError: not a checkpoint, or one that is not whole.
        ConfigError: a model that this library cannot reproduce.
    """
    if not (directory / CONFIG).exists() and (directory / ROUTER_CONFIG).exists():
        raise CheckpointError(
            f"{directory} holds routers only (no embed, layers.attn, layers.mlp, norm). "
            "Load their base model and pass this directory as router=."
        )
    config = ModelConfig.from_hf(read_json(directory / CONFIG))
    source = open_weights(directory)
    probe = source.tensors.get(ROUTER_PROBE)
    if probe is not None and probe.shape[0] % config.head_dim == 0:
        router = dataclasses.replace(config.router, width=probe.shape[0] // config.head_dim)
        config = dataclasses.replace(config, router=router)
    return Checkpoint(str(directory), config, source)
