"""The attention router's configuration, from and to the fields that released Elastic Attention checkpoints write
into `config.json`.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Literal

from elastic_jax.config.checks import check_count, check_fields, check_positive
from elastic_jax.errors import ConfigError, shown

Pattern = Literal["fa-ssa", "fa-xa", "xa-ssa"]


class HeadMode(IntEnum):
    """Attention of one KV head for one sequence."""

    FULL = 0
    SPARSE = 1


@dataclass(frozen=True)
class RouterConfig:
    """The attention router and the sparse pattern that it chooses (Elastic Attention, section 3)."""

    pooling: Literal["boundary", "prompt"] = "boundary"
    """`boundary` pools the first and last `pool_window` prompt tokens; `prompt` pools them all."""
    pool_window: int = 100
    width: int = 4
    """Hidden width of both MLPs in units of head_dim."""
    pattern: Pattern = "fa-ssa"
    """Attention of full heads - attention of sparse heads."""
    block_size: int = 128
    sink_blocks: int = 1
    local_blocks: int = 16
    """Local blocks including the diagonal one."""
    xa_threshold: float = 0.9
    """Share of a query block's worth that the kept blocks of an XA head reach."""
    xa_stride: int = 16
    """Tokens of a group that XA scores at once."""

    def __post_init__(self) -> None:
        check_fields("router", self)
        check_positive(
            "router",
            pool_window=self.pool_window,
            width=self.width,
            block_size=self.block_size,
            local_blocks=self.local_blocks,
        )
        if self.sink_blocks < 0:
            raise ConfigError(f"router sink_blocks is {self.sink_blocks}; want 0 or more.")
        if not 0 < self.xa_threshold <= 1:
            raise ConfigError(f"router xa_threshold is {self.xa_threshold}; want above 0 and at most 1.")
        if self.pattern != "fa-ssa" and (self.xa_stride < 1 or self.block_size % self.xa_stride):
            raise ConfigError(f"router xa_stride is {self.xa_stride}; want a divisor of block_size, {self.block_size}.")

    @property
    def full_heads_choose(self) -> bool:
        """Whether the heads that choose blocks by content (XA) are the full ones; under fa-xa they are the sparse."""
        return self.pattern == "xa-ssa"


OFFICIAL_BLOCK = 128
"""Tokens per block of the released kernels; a `block_size` of 64 in a released config is a leftover of training."""

TRAINING_DEFAULTS: dict[str, Any] = {
    "enable_lambda_task": True,
    "use_task_emb_for_mask": False,
    "disable_linear_regularization_term": False,
    "suggested_sparsity": None,
    "suggested_threshold": 0.5,
    "triangle_n_last": 128,
    "topk_k": 2048,
    "pooling_seq": True,
    "enable_layerwise_sparsity": False,
    "layerwise_sparsity_schedule": "high-low-high",
    "layerwise_sparsity_min_ratio": 0.5,
    "layerwise_sparsity_max_ratio": 1.0,
    "layerwise_sparsity_power": 1.0,
    "layerwise_sparsity_weight": 1.0,
    "erank_analysis_path": None,
}
"""Official fields without effect on inference, with the values that the official class expects."""

HARMLESS = frozenset(TRAINING_DEFAULTS) | {"mask_temp", "mask_hard_sample", "enable_contrastive_loss"}

_PATTERNS: dict[tuple[str, str], Pattern] = {
    ("full", "streaming"): "fa-ssa",
    ("full", "xattn"): "fa-xa",
    ("xattn", "streaming"): "xa-ssa",
}
_MARKS = ("toggle_type", "retrieval_mode", "pooling_mode", "sink_size", "local_window_size", "enable_ada_sparsity")
_OWN = "elastic_jax"
_OWN_FIELDS = ("pooling", "pool_window", "width", "block_size", "xa_threshold", "xa_stride")


def is_elastic(fields: dict[str, Any]) -> bool:
    """Whether a `config.json` belongs to an Elastic Attention checkpoint."""
    architectures = fields.get("architectures")
    names = architectures if isinstance(architectures, list) else []
    return any(isinstance(name, str) and name.startswith("Paw") for name in names) or any(
        mark in fields for mark in _MARKS
    )


def router_from_hf(fields: dict[str, Any]) -> RouterConfig:
    """Takes the official router fields out of `fields`; absent ones have the official class defaults."""
    for name, want in (("enable_ada_sparsity", True), ("use_softmax", True), ("pooling_mode", "ctx_q")):
        got = fields.pop(name, None)
        if got != want:
            raise ConfigError(
                f"this Elastic Attention checkpoint has {name}={got!r}; the released routers use {want!r}, the only "
                "form with defined inference."
            )
    sinks, window = fields.pop("sink_size", 128), fields.pop("local_window_size", 1024)
    if sinks != 0:
        check_count("config.json sink_size", sinks)
    check_count("config.json local_window_size", window)
    modes = (fields.pop("retrieval_mode", "full"), fields.pop("toggle_type", "streaming"))
    if not all(isinstance(mode, str) for mode in modes) or modes not in _PATTERNS:
        raise ConfigError(
            f"retrieval_mode {modes[0]!r} with toggle_type {modes[1]!r} is not supported; want one of "
            f"{', '.join('/'.join(pair) for pair in _PATTERNS)}."
        )
    if fields.pop("block_size", OFFICIAL_BLOCK) not in (64, OFFICIAL_BLOCK):
        raise ConfigError(f"an Elastic Attention checkpoint has blocks of {OFFICIAL_BLOCK} tokens.")
    own = fields.pop(_OWN, None) or {}
    if not isinstance(own, dict):
        raise ConfigError(f"config.json {_OWN} is {shown(own)}; want an object.")
    unknown = sorted(set(own) - set(_OWN_FIELDS))
    if unknown:
        raise ConfigError(f"unknown fields in {_OWN!r} of config.json: {unknown}; want {list(_OWN_FIELDS)}.")
    block = own.get("block_size", OFFICIAL_BLOCK)
    check_count(f"config.json {_OWN}.block_size", block)
    return RouterConfig(
        pattern=_PATTERNS[modes],
        sink_blocks=-(-sinks // block),
        local_blocks=-(-window // block),
        **own,
    )


def router_to_hf(router: RouterConfig) -> dict[str, Any]:
    """Official fields of `router`; what they cannot say goes into one extra object, written only when needed."""
    retrieval, toggle = next(modes for modes, pattern in _PATTERNS.items() if pattern == router.pattern)
    standard = RouterConfig()
    own = {name: getattr(router, name) for name in _OWN_FIELDS if getattr(router, name) != getattr(standard, name)}
    return {
        "retrieval_mode": retrieval,
        "toggle_type": toggle,
        "sink_size": router.sink_blocks * router.block_size,
        "local_window_size": router.local_blocks * router.block_size,
        "pooling_mode": "ctx_q",
        "enable_ada_sparsity": True,
        "use_softmax": True,
        **TRAINING_DEFAULTS,
        **({_OWN: own} if own else {}),
    }


def router_from_json(raw: dict[str, Any]) -> RouterConfig:
    """Reads the `router` object of a `router_config.json` (our own field names)."""
    if not isinstance(raw, dict):
        raise ConfigError(f"the router settings are {shown(raw)}; want an object.")
    known = {field.name for field in dataclasses.fields(RouterConfig)}
    unknown = sorted(set(raw) - known)
    if unknown:
        raise ConfigError(f"unknown router fields {unknown}; want {sorted(known)}.")
    return RouterConfig(**raw)
