"""The shape of a model without its weights, and the vector memory that the attention kernels take for it on a TPU."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

from elastic_jax.config import ModelConfig
from elastic_jax.files import read_json
from elastic_jax.int8_linear import int8_shapes
from elastic_jax.model import param_shapes
from elastic_jax.settings import shipped_configs
from elastic_jax.weights import read_config
from pallas_kernels.dispatch import tpu_vector_memory
from train.plan.chips import Chip


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
        return ModelConfig.from_hf(read_json(known_models()[max(fitting, key=len)]))
    return read_config(model)


@cache
def stored_shapes(model: ModelConfig, dtype: str, weights: str) -> dict[str, Any]:
    """Shape and type of every parameter by dotted path, as a run with these settings keeps them."""
    shapes = param_shapes(model, dtype)
    return int8_shapes(shapes) if weights == "int8" else shapes


@cache
def kernel_bytes(model: ModelConfig, chip: Chip, item: int) -> dict[str, int]:
    """`tpu_vector_memory` for a model whose numbers have `item` bytes; empty for a GPU."""
    if not chip.kind:
        return {}
    groups = model.num_heads // model.num_kv_heads
    return tpu_vector_memory(chip.kind, groups, model.head_dim, model.router.block_size, item)
