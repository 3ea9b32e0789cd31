"""Model and router configuration: frozen, validated, convertible from and to Hugging Face `config.json`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from elastic_jax.errors import ConfigError
from elastic_jax.field_types import check_count, check_fields, shown

RopeType = Literal["default", "linear", "dynamic", "llama3", "yarn", "longrope"]
Pattern = Literal["fa-ssa", "fa-xa", "xa-ssa"]
Family = Literal["llama", "mistral", "qwen2", "qwen3"]
MOST_LAYERS = 1000
"""Several times the deepest models known; what a damaged file asks for is refused before work in proportion to it."""


@dataclass(frozen=True)
class RopeConfig:
    """Rotary position embedding parameters; unset fields (None) do not apply to the type."""

    type: RopeType = "default"
    theta: float = 10_000.0
    factor: float = 1.0
    original_max_position: int | None = None
    """Positions of pretraining before extension (llama3, yarn, longrope)."""
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

    def __post_init__(self) -> None:
        check_fields("rope", self)
        _check_positive("rope", theta=self.theta, factor=self.factor)
        if self.original_max_position is not None:
            _check_positive("rope", original_max_position=self.original_max_position)
        if self.type == "llama3" and not 0 < self.low_freq_factor < self.high_freq_factor:
            raise ConfigError(
                f"rope type llama3 has low_freq_factor {self.low_freq_factor} and high_freq_factor "
                f"{self.high_freq_factor}; want 0 < low < high."
            )
        if self.type == "longrope" and (self.short_factor is None or self.long_factor is None):
            raise ConfigError("rope type longrope needs short_factor and long_factor: one number per pair of channels.")


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
        _check_positive(
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


@dataclass(frozen=True)
class ModelConfig:
    """Architecture of one decoder, in our own vocabulary."""

    family: Family
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    max_position_embeddings: int
    rms_norm_eps: float = 1e-5
    rope: RopeConfig = field(default_factory=RopeConfig)
    tie_word_embeddings: bool = False
    qkv_bias: bool = False
    o_bias: bool = False
    qk_norm: bool = False
    """Per-head RMSNorm on queries and keys before RoPE (Qwen3)."""
    sliding_window: int | None = None
    """Every head of every layer sees only the last `sliding_window` tokens; None for no limit."""
    initializer_range: float = 0.02
    router: RouterConfig = field(default_factory=RouterConfig)
    hf_extra: dict = field(default_factory=dict, compare=False, hash=False)
    """Harmless fields of the source `config.json` (token ids, architectures, ...), written back on export."""

    def __post_init__(self) -> None:
        check_fields("model", self)
        check_count("model num_layers", self.num_layers, MOST_LAYERS)
        _check_positive(
            "model",
            vocab_size=self.vocab_size,
            hidden_size=self.hidden_size,
            intermediate_size=self.intermediate_size,
            num_heads=self.num_heads,
            num_kv_heads=self.num_kv_heads,
            head_dim=self.head_dim,
            max_position_embeddings=self.max_position_embeddings,
            rms_norm_eps=self.rms_norm_eps,
        )
        if self.sliding_window is not None:
            _check_positive("model", sliding_window=self.sliding_window)
        if self.num_heads % self.num_kv_heads:
            raise ConfigError(
                f"{self.num_heads} query heads do not divide into {self.num_kv_heads} key/value heads. "
                "Check num_attention_heads and num_key_value_heads."
            )
        for name in ("rms_norm_eps", "initializer_range"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"model {name} is {shown(getattr(self, name))}; want a number from 0 to 1.")
        if self.head_dim % 2:
            raise ConfigError(f"head_dim is {self.head_dim}; rotary embedding needs an even number.")
        for name in ("short_factor", "long_factor"):
            factors = getattr(self.rope, name)
            if factors is not None and len(factors) != self.head_dim // 2:
                raise ConfigError(f"rope {name} has {len(factors)} numbers; want head_dim / 2 = {self.head_dim // 2}.")

    @classmethod
    def from_hf(cls, raw: Mapping[str, Any]) -> ModelConfig:
        """Reads the content of a Hugging Face `config.json`, of a plain or an Elastic Attention checkpoint.

        Raises:
            ConfigError: a family, value or field that this library cannot reproduce, by name.
        """
        from elastic_jax.hf_config import config_from_hf

        return config_from_hf(raw)

    def to_hf(self) -> dict[str, Any]:
        """The content of an equivalent `config.json` of the backbone; `from_hf` reads it back (router fields aside)."""
        from elastic_jax.hf_config import config_to_hf

        return config_to_hf(self)


def _check_positive(what: str, **values: float) -> None:
    for name, value in values.items():
        if not value > 0:
            raise ConfigError(f"{what} {name} is {value!r}; want a number above 0.")
