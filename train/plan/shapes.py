"""The shape of a model without its weights, and the vector memory that the attention kernels take for it on a TPU."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import jax
from jax.sharding import AbstractMesh

from elastic_jax.config import ModelConfig
from elastic_jax.files import read_json
from elastic_jax.int8_linear import int8_shapes
from elastic_jax.model import param_shapes
from elastic_jax.settings import shipped_configs
from elastic_jax.weights.hf import CONFIG
from elastic_jax.weights.locate import locate
from pallas_kernels.blocks import Geometry
from pallas_kernels.tpu.backward import backward_bytes
from pallas_kernels.tpu.forward import forward_bytes
from pallas_kernels.tpu.limits import VECTOR_MEMORY, tile_width
from pallas_kernels.tpu.plan import Layout
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


@cache
def kernel_bytes(model: ModelConfig, chip: Chip, item: int) -> dict[str, int]:
    """Bytes by kernel, and the limit, for numbers of `item` bytes; empty for a GPU, where tiles are chosen by search.

    The forward kernel is that of training, which writes the chosen branch and the difference of both.
    """
    if not chip.kind:
        return {}
    block, H, groups = model.router.block_size, model.head_dim, model.num_heads // model.num_kv_heads
    layout = Layout(1, model.num_kv_heads, 1, groups, H, Geometry(block, block, block))
    device = jax.sharding.AbstractDevice(device_kind=chip.kind, num_cores=1, platform="tpu")
    with jax.sharding.use_abstract_mesh(AbstractMesh((), (), abstract_device=device)):
        keys = {kernel: block * tile_width(kernel, layout) for kernel in ("forward", "backward")}
    return {
        "forward": forward_bytes(layout.rows, H, keys["forward"], item, [item, item]),
        "backward": backward_bytes(layout.rows, H, keys["backward"], item),
        "limit": VECTOR_MEMORY,
    }
