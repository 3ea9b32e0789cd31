"""load_heads: calibrated heads from their own files, from a model saved with them, or from DuoAttention's table."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from elastic_jax.config.checks import check_count
from elastic_jax.config.router import router_from_json
from elastic_jax.errors import CheckpointError, ConfigError, ElasticError, shown
from elastic_jax.files import read_json
from elastic_jax.heads.duo_attention import TABLE, read_duo_attention
from elastic_jax.heads.record import (
    FORMAT,
    HEADS_ARRAYS,
    HEADS_CONFIG,
    MOST_HEADS,
    MOST_LAYERS,
    VERSION,
    CurvePoint,
    Heads,
)

_FIELDS = {"format", "version", "shape", "router", "msr", "curve", "weights", "settings"}
_ARRAYS = {"order": "I32", "gates": "F32"}


def load_heads(source: str | Path) -> Heads:
    """Reads calibrated heads.

    Args:
        source: a directory written by `Heads.save`, a model's that was saved with heads, a file of either, or a
            `full_attention_heads.tsv` of DuoAttention (the file or its directory).

    Raises:
        CheckpointError: nothing there, another kind of file, or one that is not whole.
    """
    path = Path(source).expanduser()
    if path.suffix == ".tsv" and path.is_file():
        return read_duo_attention(path)
    if path.is_file() and path.name in (HEADS_CONFIG, HEADS_ARRAYS):
        path = path.parent
    if (path / HEADS_CONFIG).is_file():
        return _read(path)
    if (path / TABLE).is_file():
        return read_duo_attention(path / TABLE)
    raise CheckpointError(
        f"{str(source)!r} holds no calibrated heads; want a directory with {HEADS_CONFIG} and {HEADS_ARRAYS}, or a "
        f"{TABLE} of DuoAttention. Calibrate with `train heads`."
    )


def _read(directory: Path) -> Heads:
    file = directory / HEADS_CONFIG
    raw = read_json(file)
    if (raw.get("format"), raw.get("version")) != (FORMAT, VERSION):
        raise CheckpointError(
            f"{file} has format {shown(raw.get('format'))} version {shown(raw.get('version'))}; "
            f"want {FORMAT!r} version {VERSION}."
        )
    if raw.keys() != _FIELDS:
        unknown, missing = sorted(raw.keys() - _FIELDS), sorted(_FIELDS - raw.keys())
        raise CheckpointError(f"{file}: unknown fields {shown(unknown)}, missing fields {shown(missing)}.")
    try:
        shape = _shape(raw["shape"])
        if not isinstance(raw["settings"], dict):
            raise ConfigError(f"settings is {shown(raw['settings'])}; want an object.")
        arrays = _read_arrays(directory / HEADS_ARRAYS, shape)
        return Heads(
            order=arrays["order"],
            router=router_from_json(raw["router"]),
            msr=raw["msr"],
            gates=arrays.get("gates"),
            curve=_curve(raw["curve"]),
            weights=raw["weights"],
            settings=raw["settings"],
        )
    except CheckpointError:
        raise
    except ElasticError as error:
        raise CheckpointError(f"{directory} holds no valid heads: {error}") from error


def _shape(value: Any) -> tuple[int, int]:
    if not isinstance(value, list) or len(value) != 2:
        raise ConfigError(f"shape is {shown(value)}; want [layers, KV heads].")
    for what, size, most in zip(("layers", "KV heads"), value, (MOST_LAYERS, MOST_HEADS), strict=True):
        check_count(what, size, most)
    return value[0], value[1]


def _curve(value: Any) -> tuple[CurvePoint, ...]:
    kinds = {"full_heads": int, "msr": int | float, "kl": int | float}
    points = value if isinstance(value, list) else [value]
    for point in points:
        fits = isinstance(point, dict) and point.keys() == kinds.keys()
        if not fits or any(isinstance(x, bool) or not isinstance(x, kinds[name]) for name, x in point.items()):
            raise ConfigError(f"curve has {shown(point)}; want objects of the numbers {', '.join(kinds)}.")
    return tuple(CurvePoint(**point) for point in points)


def _read_arrays(file: Path, shape: tuple[int, int]) -> dict[str, np.ndarray]:
    """The arrays, once their names, types and shapes are known to be those that the configuration gives."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="numpy") as handle:
            found = {name: handle.get_slice(name) for name in handle.keys()}
            if not {"order"} <= found.keys() <= _ARRAYS.keys():
                raise CheckpointError(f"{file} holds {shown(sorted(found))}; want order and perhaps gates.")
            for name, piece in found.items():
                got, want = (piece.get_dtype(), piece.get_shape()), (_ARRAYS[name], list(shape))
                if got != want:
                    raise CheckpointError(f"{file} holds {name} as {got[0]} {got[1]}; want {want[0]} {want[1]}.")
            return {name: handle.get_tensor(name) for name in found}
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{file} cannot be read as safetensors ({error}). It may be missing, truncated or edited: fetch it again."
        ) from error
