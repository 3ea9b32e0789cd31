"""Model and router configuration: frozen, validated, convertible from and to Hugging Face `config.json`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

RopeType = Literal["default", "linear", "dynamic", "llama3", "yarn", "longrope"]
Pattern = Literal["fa-ssa", "fa-xa", "xa-ssa"]
Family = Literal["llama", "mistral", "qwen2", "qwen3"]


@dataclass(frozen=True)
class RopeConfig:
    """Rotary position embedding parameters; unset fields (None) do not apply to the type."""

    type: RopeType = "default"
    theta: float = 10_000.0
    factor: float = 1.0
    original_max_position: int | None = None
    """Positions of pretraining before extension (llama3, yarn, longrope, dynamic)."""
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
