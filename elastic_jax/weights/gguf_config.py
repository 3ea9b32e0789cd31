"""Converts GGUF metadata to a `ModelConfig`, with the same checks as a Hugging Face configuration."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from elastic_jax.config import ModelConfig
from elastic_jax.config.checks import check_count
from elastic_jax.errors import ConfigError

_ARCHITECTURES = ("llama", "qwen2", "qwen3")

_KNOWN = frozenset(
    """block_count context_length embedding_length feed_forward_length vocab_size
    attention.head_count attention.head_count_kv attention.key_length attention.value_length
    attention.layer_norm_rms_epsilon rope.dimension_count rope.freq_base rope.scaling.type rope.scaling.factor
    rope.scaling.original_context_length rope.scaling.finetuned""".split()
)
_NEUTRAL = {"expert_count": 0, "expert_used_count": 0, "attention.sliding_window": 0, "rope.scaling.attn_factor": 1.0}

_LLAMA3_VARIANTS = (8.0, 32.0)
_LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}


def config_from_metadata(
    metadata: Mapping[str, Any],
    *,
    vocab_size: int,
    tied: bool,
    attention_bias: bool,
    rope_factors: np.ndarray | None,
) -> ModelConfig:
    """The configuration that GGUF metadata describes.

    Args:
        rope_factors: the file's per-channel rope divisors `[head_dim / 2]`, if it has any.

    Raises:
        ConfigError: an architecture, key or value that this library cannot reproduce, by name.
    """
    architecture = metadata.get("general.architecture")
    if architecture not in _ARCHITECTURES:
        raise ConfigError(f"the GGUF file has architecture {architecture!r}; supported: {', '.join(_ARCHITECTURES)}.")
    prefix = f"{architecture}."
    values = {name.removeprefix(prefix): value for name, value in metadata.items() if name.startswith(prefix)}
    refused = {n: v for n, v in values.items() if n not in _KNOWN and (n not in _NEUTRAL or v != _NEUTRAL[n])}
    if refused:
        listed = ", ".join(f"{prefix}{name}={value!r}" for name, value in sorted(refused.items()))
        raise ConfigError(f"GGUF metadata that is not understood and may change the result: {listed}.")

    def integer(name: str, default: int | None = None) -> int:
        value = values.get(name, default)
        if isinstance(value, list) and len(set(value)) == 1:
            value = value[0]
        if not isinstance(value, int):
            raise ConfigError(f"GGUF metadata has {prefix}{name}={value!r}; want one number for all layers.")
        return value

    heads = integer("attention.head_count")
    check_count(f"GGUF metadata {prefix}attention.head_count", heads)
    hidden = integer("embedding_length")
    head_dim = integer("attention.key_length", hidden // heads)
    for name in ("attention.value_length", "rope.dimension_count"):
        if integer(name, head_dim) != head_dim:
            raise ConfigError(f"GGUF metadata has {prefix}{name}={values[name]}; want the head dimension {head_dim}.")
    context = integer("context_length")
    raw: dict[str, Any] = {
        "model_type": architecture,
        "vocab_size": vocab_size,
        "hidden_size": hidden,
        "intermediate_size": integer("feed_forward_length"),
        "num_hidden_layers": integer("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": integer("attention.head_count_kv", heads),
        "head_dim": head_dim,
        "max_position_embeddings": context,
        "rms_norm_eps": _decimal(values.get("attention.layer_norm_rms_epsilon", 0.0)),
        "attention_bias": attention_bias,
        "tie_word_embeddings": tied,
        "rope_parameters": _rope(values, rope_factors, head_dim, context),
    }

    def token(name: str) -> int | None:
        """The id of a special token; None where the file has none, or writes -1 or another id beyond the vocabulary."""
        value = metadata.get(f"tokenizer.ggml.{name}_token_id")
        return value if isinstance(value, int) and 0 <= value < vocab_size else None

    ends = [end for end in map(token, ("eos", "eot", "eom")) if end is not None]
    ends = list(dict.fromkeys(ends))
    raw["eos_token_id"] = ends if len(ends) > 1 else ends[0] if ends else None
    raw |= {"bos_token_id": token("bos"), "pad_token_id": token("padding"), "unk_token_id": token("unknown")}
    return ModelConfig.from_hf(raw)


def _rope(values: Mapping[str, Any], factors: np.ndarray | None, head_dim: int, context: int) -> dict[str, Any]:
    theta = _decimal(values.get("rope.freq_base", 10_000.0))
    kind = values.get("rope.scaling.type", "linear" if values.get("rope.scaling.factor") else "none")
    factor = _decimal(values.get("rope.scaling.factor", 1.0))
    if factors is not None:
        if kind != "none" and factor != 1.0:
            raise ConfigError(
                f"the GGUF file scales its positions twice: by divisors of its own (rope_freqs.weight) and by the "
                f"{kind} factor {factor}. Only one of them is supported; convert the model again."
            )
        return {"rope_theta": theta, **_from_factors(factors, theta, head_dim)}
    if kind == "none":
        return {"rope_theta": theta, "rope_type": "default"}
    original = values.get("rope.scaling.original_context_length") or context
    return {
        "rope_theta": theta,
        "rope_type": kind,
        "factor": factor,
        "original_max_position_embeddings": original,
    }


def _from_factors(factors: np.ndarray, theta: float, head_dim: int) -> dict[str, Any]:
    """The published Llama 3 scaling that has these divisors; any other divisors are written as longrope."""
    for factor in _LLAMA3_VARIANTS:
        if np.allclose(factors, _llama3_divisors(factor, theta, head_dim), rtol=1e-4):
            return {"rope_type": "llama3", "factor": factor, **_LLAMA3}
    listed = [float(x) for x in factors]
    return {"rope_type": "longrope", "short_factor": listed, "long_factor": listed, "attention_factor": 1.0}


def _llama3_divisors(factor: float, theta: float, head_dim: int) -> np.ndarray:
    wavelength = 2 * np.pi * theta ** (np.arange(0, head_dim, 2) / head_dim)
    low, high, original = _LLAMA3.values()
    kept = np.clip((original / wavelength - low) / (high - low), 0.0, 1.0)
    return 1.0 / (kept + (1.0 - kept) / factor)


def _decimal(value: float) -> float:
    """The short decimal that was rounded to the float32 in the file: 1e-05, not 9.999999747378752e-06."""
    return float(str(np.float32(value)))
