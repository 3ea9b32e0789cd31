"""Rotary embedding settings, from and to a Hugging Face configuration in its new and its old layout.

New: everything in `rope_parameters`. Old: `rope_theta` beside a `rope_scaling` that may be null. A silent
misreading here gives a model that loads and then writes nonsense, so every unknown key is refused.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal, get_args

from elastic_jax.config.checks import check_fields, check_positive
from elastic_jax.errors import ConfigError

RopeType = Literal["default", "linear", "dynamic", "llama3", "yarn", "longrope"]


@dataclass(frozen=True)
class RopeConfig:
    """Rotary position embedding parameters; unset fields (None) do not apply to the type."""

    type: RopeType = "default"
    theta: float = 10_000.0
    factor: float | None = None
    """As written, 1 included; None where the file names none, see `extension`."""
    original_max_position: int | None = None
    """Positions of pretraining before extension (not dynamic)."""
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    attention_factor: float | None = None
    """Scale of cos and sin (yarn, longrope); None derives it from `factor`."""
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    mscale: float | None = None
    mscale_all_dim: float | None = None
    truncate: bool = True
    short_factor: tuple[float, ...] | None = None
    long_factor: tuple[float, ...] | None = None
    fraction: float = 1.0
    """Share of the channels of a head that rotate, the first ones."""
    query_scaling: float | None = None
    """b of the factor 1 + b log(1 + floor(position / original_max_position)) on queries (Ministral 3); None for 1."""

    def __post_init__(self) -> None:
        check_fields("rope", self)
        given = {"factor": self.factor, "original_max_position": self.original_max_position}
        check_positive("rope", theta=self.theta, **{name: value for name, value in given.items() if value is not None})
        if not 0 < self.fraction <= 1:
            raise ConfigError(f"rope fraction (partial_rotary_factor) is {self.fraction}; want above 0, at most 1.")
        if self.query_scaling is not None and self.original_max_position is None:
            raise ConfigError(
                "rope query_scaling (llama_4_scaling_beta) needs original_max_position_embeddings, in a rope type that "
                "has it: llama3, yarn or longrope."
            )
        if self.type == "llama3" and not 0 < self.low_freq_factor < self.high_freq_factor:
            raise ConfigError(
                f"rope type llama3 has low_freq_factor {self.low_freq_factor} and high_freq_factor "
                f"{self.high_freq_factor}; want 0 < low < high."
            )
        if self.type == "longrope" and (self.short_factor is None or self.long_factor is None):
            raise ConfigError("rope type longrope needs short_factor and long_factor: one number per pair of channels.")

    def extension(self, max_position_embeddings: int) -> float:
        """The scaling factor as written; else, for yarn and longrope, all positions over those of pretraining."""
        if self.factor is not None:
            return self.factor
        if self.type in ("yarn", "longrope") and self.original_max_position is not None:
            return max_position_embeddings / self.original_max_position
        return 1.0


_UNSET = RopeConfig()
_NAMES = {
    "rope_theta": "theta",
    "original_max_position_embeddings": "original_max_position",
    "partial_rotary_factor": "fraction",
    "llama_4_scaling_beta": "query_scaling",
} | {
    field.name: field.name
    for field in dataclasses.fields(RopeConfig)
    if field.name not in ("type", "theta", "original_max_position", "fraction", "query_scaling")
}
"""Our field of each field of a `config.json`."""
_ALL_TYPES = ("partial_rotary_factor", "llama_4_scaling_beta")
"""Fields that apply whatever the type is."""
_REQUIRED: dict[RopeType, tuple[str, ...]] = {
    "default": (),
    "linear": ("factor",),
    "dynamic": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor"),
    "yarn": ("factor",),
    "longrope": ("short_factor", "long_factor"),
}
_USED: dict[RopeType, tuple[str, ...]] = {
    "default": (),
    "linear": ("factor", "original_max_position_embeddings"),
    "dynamic": ("factor",),
    "llama3": ("factor", "original_max_position_embeddings", "low_freq_factor", "high_freq_factor"),
    "yarn": (
        "factor",
        "original_max_position_embeddings",
        "attention_factor",
        "beta_fast",
        "beta_slow",
        "mscale",
        "mscale_all_dim",
        "truncate",
    ),
    "longrope": ("factor", "original_max_position_embeddings", "attention_factor", "short_factor", "long_factor"),
}


def rope_from_hf(fields: dict[str, Any], max_position_embeddings: int) -> RopeConfig:
    """Takes the rope fields out of `fields`; where both layouts are present they must agree."""
    new = fields.pop("rope_parameters", None)
    old = fields.pop("rope_scaling", None)
    theta = fields.pop("rope_theta", None)
    original = fields.pop("original_max_position_embeddings", None)
    partial = fields.pop("partial_rotary_factor", None)
    outer = {"rope_theta": theta, "original_max_position_embeddings": original, "partial_rotary_factor": partial}
    if new is None or (old is None and theta is None):
        return _parse(new or old or {}, outer, max_position_embeddings)
    rope = _parse(new, {"original_max_position_embeddings": original}, max_position_embeddings)
    legacy = _parse(old or {}, outer, max_position_embeddings)
    if rope != legacy:
        raise ConfigError(
            f"config.json states the rotary embedding twice and differently: rope_parameters gives {rope}; "
            f"rope_theta and rope_scaling give {legacy}. Delete the wrong one."
        )
    return rope


def rope_to_hf(rope: RopeConfig) -> dict[str, Any]:
    """Both layouts at once, so that transformers 4 and 5 read the same numbers."""
    scaling: dict[str, Any] = {"rope_type": rope.type}
    for key in (*_USED[rope.type], *_ALL_TYPES):
        value = getattr(rope, _NAMES[key])
        if key in _REQUIRED[rope.type] or value != getattr(_UNSET, _NAMES[key]):
            scaling[key] = list(value) if isinstance(value, tuple) else value
    partial = {} if rope.fraction == 1.0 else {"partial_rotary_factor": rope.fraction}
    return partial | {
        "rope_theta": rope.theta,
        "rope_scaling": None if rope.type == "default" else scaling,
        "rope_parameters": {"rope_theta": rope.theta, **scaling},
    }


def _parse(inner: Any, outer: dict[str, Any], max_position_embeddings: int) -> RopeConfig:
    if not isinstance(inner, dict):
        raise ConfigError(f"the rope settings of config.json are {inner!r}; want an object or null.")
    values = {key: value for key, value in outer.items() if value is not None}
    values |= {key: value for key, value in inner.items() if value is not None}
    kind = values.pop("rope_type", None)
    legacy_kind = values.pop("type", None)
    kind = kind or legacy_kind or "default"
    kind = "longrope" if kind == "su" else kind  # its name in the first Phi-3 checkpoints
    if kind not in get_args(RopeType):
        raise ConfigError(
            f"config.json has rope type {kind!r}; this library knows {', '.join(get_args(RopeType))}. "
            "Another type would give wrong positions, so the checkpoint is refused."
        )
    for name in ("finetuned", "max_position_embeddings"):  # of no effect
        values.pop(name, None)
    unknown = {key: value for key, value in values.items() if key not in _NAMES}
    if unknown:
        raise ConfigError(f"unknown rope settings in config.json: {unknown}. Known: {', '.join(_NAMES)}.")
    # DeepSeek writes a null factor of yarn, and means the ratio of the two lengths.
    missing = [key for key in _REQUIRED[kind] if key not in values and not (kind == "yarn" and key in inner)]
    if missing:
        raise ConfigError(f"rope type {kind!r} needs {', '.join(missing)} in config.json.")
    if kind in ("llama3", "yarn", "longrope"):
        original = outer.get("original_max_position_embeddings")  # first, as in transformers
        original = original or values.get("original_max_position_embeddings")
        values["original_max_position_embeddings"] = original or max_position_embeddings
    relevant = {_NAMES[key]: values[key] for key in (*_USED[kind], *_ALL_TYPES, "rope_theta") if key in values}
    for name in ("short_factor", "long_factor"):
        if name in relevant:
            relevant[name] = tuple(relevant[name]) if isinstance(relevant[name], list) else relevant[name]
    return RopeConfig(type=kind, **relevant)
