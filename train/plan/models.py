"""The shape of a model without its weights."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

from elastic_jax.config import ModelConfig
from elastic_jax.int8_linear import int8_shapes
from elastic_jax.model import param_shapes
from elastic_jax.settings import shipped_configs
from elastic_jax.weights.hf import CONFIG
from elastic_jax.weights.locate import locate
from elastic_jax.weights.safetensors_dir import read_json


def known_models() -> dict[str, Path]:
    """Shipped `config.json` files by the name of their model, in small letters."""
    return {file.stem: file for file in sorted((shipped_configs() / "models").glob("*.json"))}


def model_shape(model: str) -> ModelConfig:
    """The configuration of a model: a `config.json`, a folder that has one, a shipped name (with any owner before it
    and any ending after it: `Qwen/Qwen3-8B-Base`), else a hub id.

    Raises:
        CheckpointError, ConfigError: nothing there, or a model that this library cannot reproduce.
    """
    path = Path(model).expanduser()
    if path.suffix == ".json" and path.is_file():
        return ModelConfig.from_hf(read_json(path))
    name = model.lower().rpartition("/")[2]
    fitting = [known for known in known_models() if name.startswith(known)]
    if fitting and not path.exists():
        return ModelConfig.from_hf(json.loads(known_models()[max(fitting, key=len)].read_text(encoding="utf-8")))
    found = locate(model, weights=False)
    if found.suffix == ".gguf":
        from elastic_jax.weights.gguf import open_gguf

        return open_gguf(found).config
    return ModelConfig.from_hf(read_json(found / CONFIG))


@cache
def stored_shapes(model: ModelConfig, dtype: str, weights: str) -> dict[str, Any]:
    """Shape and type of every parameter by dotted path, as a run with these settings keeps them."""
    shapes = param_shapes(model, dtype)
    return int8_shapes(shapes) if weights == "int8" else shapes
