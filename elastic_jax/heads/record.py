"""The order in which the KV heads of a model become sparse, as calibration finds it, and its two files."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from elastic_jax.config import HeadMode, ModelConfig, RouterConfig
from elastic_jax.config.checks import MOST_LAYERS
from elastic_jax.errors import CheckpointError, ConfigError, ShapeError, shown
from elastic_jax.files import atomic_directory, write_json

HEADS_CONFIG = "heads_config.json"
HEADS_ARRAYS = "heads.safetensors"
FORMAT, VERSION = "elastic-jax-heads", 1

_GEOMETRY = ("pattern", "block_size", "sink_blocks", "local_blocks")
_XA = ("xa_threshold", "xa_stride")
MOST_HEADS = 1024
"""KV heads of a layer, several times those of any model known."""
_ROUNDING = 1e-6
"""How much a share may fall short of the MSR asked for: an MSR of 0.8 was perhaps a float32 before."""
_DIGEST = re.compile("[0-9a-f]{64}")


class CurvePoint(NamedTuple):
    """What a number of full heads loses."""

    full_heads: int
    msr: float
    kl: float
    """Mean KL divergence (nats) from the next-token distribution of full attention, on held-out samples."""


@dataclass(frozen=True, eq=False)
class Heads:
    """Which KV heads a model needs full attention of, found by calibration: one order of all heads, cut at any MSR.

    `L` and `K` are the layers and the KV heads of a layer.

    Raises:
        ShapeError: arrays that are no such order, or of different shapes.
        ConfigError: an MSR, a curve, a digest or settings of another kind.
    """

    order: np.ndarray
    """int32 `[L, K]`, the rank of each head: 0 is the last to become sparse, L * K - 1 the first."""
    router: RouterConfig
    """Pattern and block geometry of the sparse heads that it was calibrated for."""
    msr: float = 0.8
    """Share of sparse heads where the order is cut unless another is asked for."""
    gates: np.ndarray | None = None
    """float32 `[L, K]`, the gates that training ended with; None where there was no training."""
    curve: tuple[CurvePoint, ...] = ()
    weights: str | None = None
    """`heads_fingerprint` of the model that was calibrated; None fits every model of the same layers and heads."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """How it was made, as JSON values."""

    def __post_init__(self) -> None:
        order = _frozen(self.order, np.int32, "order")
        if order.ndim != 2 or not 0 < order.shape[0] <= MOST_LAYERS or not 0 < order.shape[1] <= MOST_HEADS:
            raise ShapeError(f"order has shape {order.shape}; want [layers, KV heads].")
        if not np.array_equal(np.sort(order, axis=None), np.arange(order.size)):
            raise ShapeError(f"order is no ranking; want each number from 0 to {order.size - 1} once.")
        object.__setattr__(self, "order", order)
        if self.gates is not None:
            gates = _frozen(self.gates, np.float32, "gates")
            if gates.shape != order.shape or not np.isfinite(gates).all():
                raise ShapeError(f"gates have shape {gates.shape}; want finite numbers of shape {order.shape}.")
            object.__setattr__(self, "gates", gates)
        _check_msr(self.msr)
        object.__setattr__(self, "msr", float(self.msr))
        curve = tuple(CurvePoint(int(full), float(msr), float(kl)) for full, msr, kl in self.curve)
        object.__setattr__(self, "curve", curve)
        for point in curve:
            _check_msr(point.msr)
            if not 0 <= point.full_heads <= order.size or not math.isfinite(point.kl):
                raise ConfigError(f"the curve has {point}; want 0 to {order.size} full heads and a finite KL.")
        if self.weights is not None and not (isinstance(self.weights, str) and _DIGEST.fullmatch(self.weights)):
            raise ConfigError(f"weights is {shown(self.weights)}; want a SHA-256 digest of 64 digits, or None.")
        try:
            json.dumps(dict(self.settings), allow_nan=False)
        except (TypeError, ValueError) as error:
            raise ConfigError(f"settings of heads are no JSON values: {error}.") from None

    def modes(self, msr: float | None = None) -> np.ndarray:
        """`HeadMode` of every head, int8 `[L, K]`: the fewest sparse heads whose share is `msr` or more.

        Args:
            msr: share of sparse heads, 0 to 1; default `self.msr`.

        Raises:
            ConfigError: an MSR outside of that range.
        """
        msr = self.msr if msr is None else msr
        _check_msr(msr)
        full_heads = math.floor((1 - msr + _ROUNDING) * self.order.size)
        return np.where(self.order < full_heads, HeadMode.FULL, HeadMode.SPARSE).astype(np.int8)

    def at(self, msr: float) -> Heads:
        """The same order, cut at another MSR."""
        return dataclasses.replace(self, msr=msr)

    def check_fits(self, config: ModelConfig) -> None:
        """Raises `ConfigError` for a model of other layers or KV heads, or whose sparse heads see something else."""
        shape = (config.num_layers, config.num_kv_heads)
        if self.order.shape != shape:
            raise ConfigError(
                f"these heads are of a model with {_sized(self.order.shape)}; this model has {_sized(shape)}. "
                "Calibrate heads for this model."
            )
        wrong = [
            f"{name} is {getattr(config.router, name)!r}, the heads have {value!r}"
            for name, value in self.geometry.items()
            if getattr(config.router, name) != value
        ]
        if wrong:
            raise ConfigError(
                f"these heads were calibrated for other sparse heads than the model has: {'; '.join(wrong)}. Calibrate "
                "heads for this pattern and these blocks."
            )

    @property
    def geometry(self) -> dict[str, Any]:
        """The fields of `router` that say what a sparse head sees."""
        names = _GEOMETRY if self.router.pattern == "fa-ssa" else _GEOMETRY + _XA
        return {name: getattr(self.router, name) for name in names}

    def save(self, directory: str | Path, *, overwrite: bool = False) -> None:
        """Writes `heads_config.json` and `heads.safetensors` into a directory, which changes whole or not at all.

        Args:
            directory: new or empty.
            overwrite: take also a directory that holds heads, which are replaced, or a model. Other files there stay.

        Raises:
            CheckpointError: a directory that holds something else, or cannot be written.
        """
        directory = Path(directory).expanduser()
        names = {entry.name for entry in directory.iterdir()} if directory.is_dir() else set()
        if overwrite and names and not names & {HEADS_CONFIG, "config.json"}:
            raise CheckpointError(
                f"{directory} holds neither heads nor a model, but {', '.join(sorted(names)[:3])}. "
                "Choose another directory."
            )
        with atomic_directory(directory, replaces=(HEADS_CONFIG, HEADS_ARRAYS) if overwrite else None) as partial:
            self.write(partial)

    def write(self, directory: Path) -> None:
        """Writes the two files into a directory that the caller makes appear whole."""
        from safetensors.numpy import save_file

        write_json(
            directory / HEADS_CONFIG,
            {
                "format": FORMAT,
                "version": VERSION,
                "shape": list(self.order.shape),
                "router": dataclasses.asdict(self.router),
                "msr": self.msr,
                "curve": [point._asdict() for point in self.curve],
                "weights": self.weights,
                "settings": dict(self.settings),
            },
        )
        arrays = {"order": self.order} if self.gates is None else {"order": self.order, "gates": self.gates}
        save_file(arrays, directory / HEADS_ARRAYS, metadata={"format": "np"})


def ranked(worth: np.ndarray) -> np.ndarray:
    """The rank of each head by falling worth, int32 of the same shape; of equal ones the first keeps full attention."""
    order = np.empty(worth.size, np.int32)
    order[np.argsort(-worth.ravel(), kind="stable")] = np.arange(worth.size)
    return order.reshape(worth.shape)


def _frozen(array: np.ndarray, dtype: type, what: str) -> np.ndarray:
    """A copy that cannot be changed."""
    given = np.asarray(array)
    if given.dtype.kind != np.dtype(dtype).kind:
        raise ShapeError(f"{what} holds {given.dtype}; want {np.dtype(dtype)}.")
    copy = given.astype(dtype)
    copy.setflags(write=False)
    return copy


def _sized(shape: tuple[int, ...]) -> str:
    return f"{shape[0]} layers of {shape[1]} KV heads"


def _check_msr(msr: float) -> None:
    if isinstance(msr, bool) or not isinstance(msr, int | float | np.floating) or not 0 <= msr <= 1:
        raise ConfigError(f"msr is {shown(msr)}; want the share of sparse heads, a number from 0 to 1.")
