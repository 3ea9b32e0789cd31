"""`from_pretrained`: reads a checkpoint of any supported format into a model."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.typing import DTypeLike

from elastic_jax.config import ModelConfig, Pattern
from elastic_jax.errors import CheckpointError, ConfigError, shown
from elastic_jax.files import read_json
from elastic_jax.heads import Heads
from elastic_jax.model import ElasticForCausalLM, Extras, from_params, param_shapes
from elastic_jax.sharding.rules import param_shardings
from elastic_jax.weights.heads import find_heads, fitted_config, give_heads
from elastic_jax.weights.hf import CONFIG, open_directory
from elastic_jax.weights.locate import locate
from elastic_jax.weights.names import ROUTER_PREFIX, ROUTER_PROBE, Entry, Part, entries
from elastic_jax.weights.router_only import ignored_names, is_extra, open_router
from elastic_jax.weights.source import Checkpoint, TensorSource, check_tensors

_LOG = logging.getLogger(__name__)

Dtype = Literal["bfloat16", "float32", "float16", "auto"]

_DTYPES = {
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "float32": np.dtype(np.float32),
    "float16": np.dtype(np.float16),
}
_HEAD, _EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"
_COMPARED = 4096
"""Rows of a matrix that are compared at a time."""
_ROUTER_SEED = 0
_ROUTER_STD = 0.02


def from_pretrained(
    source: str | Path,
    *,
    dtype: Dtype | DTypeLike = "bfloat16",
    mesh: Mesh | None = None,
    router: str | Path | None = None,
    heads: Heads | str | Path | None = None,
    msr: float | None = None,
    pattern: Pattern | None = None,
) -> ElasticForCausalLM:
    """Reads a pretrained decoder, with its routers where it has any.

    Args:
        source: a Hugging Face directory (safetensors, single or sharded), a hub id (`owner/name[@revision]`), a
            `.gguf` file, or an official Elastic Attention checkpoint.
        dtype: of the backbone, by name or as NumPy and JAX write it; "auto" keeps every stored value exactly (float32
            for quantised GGUF). Routers are always float32.
        mesh: devices to divide the parameters over, as the rules of `elastic_jax.sharding` say. Each host reads the
            blocks of its own devices, one at a time, and never holds more than one.
        router: a directory written by `save_pretrained(format="router")`; replaces routers of `source`. Without
            any, routers are initialised (N(0, 0.02), zero bias) from a fixed seed, with a warning; every head then
            runs full unless `routing` or `fresh_routers` of the model says otherwise.
        heads: calibrated heads, which decide unless the routers are asked for: `Heads`, or what `load_heads` reads, or
            "smollm2" for the shipped ones. By default those in the directory of `source`. A model without trained
            routers then gets the pattern, sink blocks and local blocks that they were calibrated for.
        msr: share of the heads to run sparse, 0 to 1, in the order of the calibration; by default the share that is
            stored with them.
        pattern: attention of full heads - attention of sparse heads; by default that of the checkpoint, else "fa-ssa".

    Raises:
        CheckpointError: a source that cannot be read, tensors that do not fit (all of them are listed), or heads that
            were calibrated for other weights.
        ConfigError: a configuration that this library cannot reproduce, by field, or heads of another model.
    """
    loaded = load_params(
        source, param_shapes, dtype=dtype, mesh=mesh, router=router, heads=heads, msr=msr, pattern=pattern
    )
    if loaded.fresh_routers and loaded.heads is None:
        _LOG.warning(
            "%s has no routers; it gets fresh ones, which have learnt nothing. Until they are trained, every head runs "
            'as with routing="full".',
            loaded.path,
        )
    model = from_params(loaded.config, loaded.params, source=str(loaded.path))
    model.extras, model.fresh_routers = loaded.extras, loaded.fresh_routers
    if loaded.heads is not None:
        give_heads(model, loaded.heads)
    return model


def read_config(source: str | Path, *, router: str | Path | None = None) -> ModelConfig:
    """The configuration that `from_pretrained` would give the model of a source, without reading any weights."""
    path = locate(source, weights=False)
    config = ModelConfig.from_hf(read_json(path / CONFIG)) if path.is_dir() else _open(path).config
    return config if router is None else dataclasses.replace(config, router=open_router(router, config)[0])


class Loaded(NamedTuple):
    """A checkpoint in memory: parameters by dotted path, and what else it holds."""

    path: Path
    config: ModelConfig
    params: dict[str, Any]
    extras: Extras
    fresh_routers: bool
    heads: Heads | None


def load_params(
    source: str | Path,
    shapes: Callable[[ModelConfig], Mapping[str, jax.ShapeDtypeStruct]],
    *,
    ignore: frozenset[str] = frozenset(),
    dtype: Dtype | DTypeLike,
    mesh: Mesh | None,
    router: str | Path | None,
    heads: Heads | str | Path | None,
    msr: float | None,
    pattern: Pattern | None,
) -> Loaded:
    """Reads the parameters that `shapes` names for the configuration of a checkpoint; see `from_pretrained`.

    The checkpoint may hold tensors named in `ignore`; they are not read.
    """
    dtype = _dtype_name(dtype)
    path = locate(source)
    checkpoint = _open(path)
    config = checkpoint.config
    router_source: TensorSource | None = checkpoint.source if ROUTER_PROBE in checkpoint.source.tensors else None
    if router is not None:
        router_config, router_source = open_router(router, config)
        config = dataclasses.replace(config, router=router_config)
    if pattern is not None:
        config = dataclasses.replace(config, router=dataclasses.replace(config.router, pattern=pattern))
    found = find_heads(heads, msr, path)
    if found is not None:
        config = fitted_config(config, found, trained=router_source is not None, pattern=pattern)

    table = list(entries({path: spec.shape for path, spec in shapes(config).items()}))
    backbone = [entry for entry in table if not entry.path.startswith(ROUTER_PREFIX)]
    routers = [entry for entry in table if entry.path.startswith(ROUTER_PREFIX)]
    _check(checkpoint, backbone, routers, router_source, ignore)

    stored = _narrowest(checkpoint.source, backbone) if dtype == "auto" else _DTYPES[dtype]
    shardings = {} if mesh is None else param_shardings(shapes(config), mesh)

    def take(held: Checkpoint, entry: Entry, dtype: np.dtype) -> jax.Array:
        return _place(entry.shape, partial(_read, held, entry, dtype), shardings.get(entry.path))

    params = {entry.path: take(checkpoint, entry, stored) for entry in backbone}
    if router_source is None:
        rng = np.random.default_rng(_ROUTER_SEED)
        fresh = {entry.path: _fresh(entry, rng) for entry in routers}
        params |= {path: _place(array.shape, array.__getitem__, shardings.get(path)) for path, array in fresh.items()}
    else:
        held = dataclasses.replace(checkpoint, source=router_source)
        params |= {entry.path: take(held, entry, _DTYPES["float32"]) for entry in routers}
    extras = Extras({name: checkpoint.source.read(name) for name in checkpoint.source.tensors if is_extra(name)})
    return Loaded(path, config, params, extras, fresh_routers=router_source is None, heads=found)


def _dtype_name(dtype: Dtype | DTypeLike) -> str:
    try:
        name = dtype if isinstance(dtype, str) else np.dtype(dtype).name
    except TypeError:
        name = ""
    if dtype is None or name not in (*_DTYPES, "auto"):
        raise ConfigError(f"unknown dtype {shown(dtype)}; want one of {', '.join(_DTYPES)}, auto.")
    return name


def _open(path: Path) -> Checkpoint:
    if path.is_dir():
        return open_directory(path)
    from elastic_jax.weights.gguf import open_gguf

    return open_gguf(path)


def _check(
    checkpoint: Checkpoint,
    backbone: list[Entry],
    routers: list[Entry],
    router_source: TensorSource | None,
    ignore: frozenset[str],
) -> None:
    found = checkpoint.source.tensors
    ignored = ignored_names(found) | {name for name in found if is_extra(name)} | ignore
    if checkpoint.config.tie_word_embeddings and {_HEAD, _EMBEDDING} <= set(found) and _HEAD not in ignore:
        if not _equal(checkpoint.source, _HEAD, _EMBEDDING):
            raise CheckpointError(
                f"{checkpoint.where}: config.json ties the head to the embedding, but {_HEAD} differs from "
                f"{_EMBEDDING}. Set tie_word_embeddings to false to use both."
            )
        ignored.add(_HEAD)
    if router_source is checkpoint.source:
        check_tensors(checkpoint.where, found, backbone + routers, ignored)
        return
    if router_source is not None:
        check_tensors("the router directory", router_source.tensors, routers, set())
        ignored |= {name for name in found if ".mask_allocator." in name}
    check_tensors(checkpoint.where, found, backbone, ignored)


def _equal(source: TensorSource, first: str, second: str) -> bool:
    """Whether two matrices are equal. Reads some rows at a time."""
    shape = source.tensors[first].shape
    if source.tensors[second].shape != shape:
        return False
    parts = ((slice(row, min(row + _COMPARED, shape[0])), slice(0, shape[1])) for row in range(0, shape[0], _COMPARED))
    return all(np.array_equal(source.read(first, part), source.read(second, part)) for part in parts)


def _narrowest(source: TensorSource, table: Iterable[Entry]) -> np.dtype:
    """The narrowest dtype that holds every stored value exactly (bfloat16 with float16 needs float32)."""
    stored = {source.tensors[name].dtype for entry in table for name in entry.hf_names()}
    return stored.pop() if len(stored) == 1 else _DTYPES["float32"]


def _read(checkpoint: Checkpoint, entry: Entry, dtype: np.dtype, part: Part) -> np.ndarray:
    """Reads a block of one parameter. Holds at most one source tensor, or a part of it, beside the result."""
    out = np.empty([cut.stop - cut.start for cut in part], dtype)
    layers, inner = (out, part[1:]) if entry.stacked else (out[None], part)
    names = entry.hf_names()[part[0]] if entry.stacked else entry.hf_names()
    cut = () if inner == _whole(entry.layer_shape) else entry.hf_part(inner)
    for layer, name in zip(layers, names, strict=True):
        with np.errstate(over="ignore"):
            layer[...] = entry.to_ours(checkpoint.source.read(name, cut), layer.shape).astype(dtype)
        if dtype == np.float16 and not np.isfinite(layer).all():
            raise CheckpointError(f"{checkpoint.where}: {name} does not fit into float16. Use bfloat16 or float32.")
    return out


def _fresh(entry: Entry, rng: np.random.Generator) -> np.ndarray:
    if entry.kind == "vector":
        return np.zeros(entry.shape, np.float32)
    return (_ROUTER_STD * rng.standard_normal(entry.shape)).astype(np.float32)


def _place(shape: tuple[int, ...], read: Callable[[Part], np.ndarray], sharding: NamedSharding | None) -> jax.Array:
    """An array made of the blocks that `read` gives. Reads each block once, even if several devices here hold it."""
    if sharding is None:
        return jnp.asarray(read(_whole(shape)))
    holders: dict[tuple[tuple[int, int], ...], list[jax.Device]] = {}
    for device, index in sharding.addressable_devices_indices_map(shape).items():
        part = tuple(cut.indices(size)[:2] for cut, size in zip(index or (), shape, strict=True))
        holders.setdefault(part, []).append(device)
    placed = []
    for part, devices in holders.items():
        block = read(tuple(slice(*ends) for ends in part))
        placed += [jax.device_put(block, device) for device in devices]
    return jax.make_array_from_single_device_arrays(shape, sharding, placed)


def _whole(shape: tuple[int, ...]) -> Part:
    return tuple(slice(0, size) for size in shape)
