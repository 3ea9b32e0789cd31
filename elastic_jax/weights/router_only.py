"""A directory with routers only: a few MB that turn a base model into an elastic one.

Also the further tensors that official Elastic Attention checkpoints hold beside backbone and routers.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from elastic_jax.config import ModelConfig, RouterConfig
from elastic_jax.config.router import router_from_json
from elastic_jax.errors import CheckpointError
from elastic_jax.files import read_json
from elastic_jax.weights.safetensors_dir import SafetensorsFiles

ROUTER_CONFIG = "router_config.json"
ROUTER_WEIGHTS = "router.safetensors"

_FORMAT = "elastic-jax-router"
_VERSION = 1
_BASE_FIELDS = ("family", "hidden_size", "num_layers", "num_heads", "num_kv_heads", "head_dim")


def open_router(directory: str | Path, base: ModelConfig) -> tuple[RouterConfig, SafetensorsFiles]:
    """Opens a router-only directory for the given base model.

    Raises:
        CheckpointError: another format, or routers made for a model of other dimensions.
    """
    directory = Path(directory).expanduser()
    raw = read_json(directory / ROUTER_CONFIG)
    if (raw.get("format"), raw.get("version")) != (_FORMAT, _VERSION):
        raise CheckpointError(
            f"{directory / ROUTER_CONFIG} has format {raw.get('format')!r} version {raw.get('version')!r}; "
            f"want {_FORMAT!r} version {_VERSION}."
        )
    made_for = raw.get("base")
    if not isinstance(made_for, dict):
        raise CheckpointError(f"{directory / ROUTER_CONFIG} does not say which base model its routers fit (`base`).")
    wrong = [
        f"{name} is {made_for.get(name)!r}, the base model has {getattr(base, name)!r}"
        for name in _BASE_FIELDS
        if made_for.get(name) != getattr(base, name)
    ]
    if wrong:
        raise CheckpointError(f"the routers in {directory} were made for another model: {'; '.join(wrong)}.")
    weights = directory / ROUTER_WEIGHTS
    if not weights.exists():
        raise CheckpointError(f"{weights} is missing. Is the download complete?")
    return router_from_json(raw.get("router") or {}), SafetensorsFiles([weights])


def router_json(config: ModelConfig, base_name: str | None) -> dict[str, Any]:
    """Content of `router_config.json`: the settings of the routers and the model that they fit."""
    base = {"name": base_name, **{name: getattr(config, name) for name in _BASE_FIELDS}}
    return {"format": _FORMAT, "version": _VERSION, "base": base, "router": dataclasses.asdict(config.router)}


NUM_TASKS = 5
"""Task labels of the released recipe; one λ pair each."""


def is_extra(name: str) -> bool:
    """Training state that is kept and written back: λ, static mask logits, the optional task embedding."""
    return name.startswith("model.sparsity_lambda") or name.endswith(
        (".self_attn.attn_mask_log_alphas", ".mask_allocator.task_embedding.weight")
    )


def ignored_names(names: Iterable[str]) -> set[str]:
    """Tensors without effect: rotary buffers of old files, and the router temperature (inference is an argmax)."""
    return {name for name in names if name.endswith((".rotary_emb.inv_freq", ".mask_allocator.log_temp"))}


def default_extras(config: ModelConfig) -> dict[str, np.ndarray]:
    """Values of the further tensors for a model that the official classes did not train: they look for them. λ is 0."""
    extras = {
        f"model.layers.{i}.self_attn.attn_mask_log_alphas": np.full(config.num_kv_heads, 4.0, np.float32)
        for i in range(config.num_layers)
    }
    extras |= {f"model.sparsity_lambda_{i}": np.zeros(1, np.float32) for i in (1, 2)}
    return extras | {f"model.sparsity_lambda{i}_task": np.zeros(NUM_TASKS, np.float32) for i in (1, 2)}


def log_temperatures(config: ModelConfig) -> dict[str, np.ndarray]:
    """The router temperature buffer of every layer: log 1."""
    return {
        f"model.layers.{i}.self_attn.mask_allocator.log_temp": np.zeros((), np.float32)
        for i in range(config.num_layers)
    }
