"""A directory with routers only: a few MB that turn a base model into an elastic one."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from elastic_jax.config import ModelConfig, RouterConfig
from elastic_jax.errors import CheckpointError
from elastic_jax.hf_router import router_from_json
from elastic_jax.weights.safetensors_dir import SafetensorsFiles, read_json

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
    """Content of `router_config.json`: what the routers are and which model they fit."""
    base = {"name": base_name, **{name: getattr(config, name) for name in _BASE_FIELDS}}
    return {"format": _FORMAT, "version": _VERSION, "base": base, "router": dataclasses.asdict(config.router)}


def write_json(file: Path, value: dict[str, Any]) -> None:
    file.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
