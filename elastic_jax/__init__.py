"""Pretrained decoders with learned full or sparse attention per head, in JAX.

The names below are imported when first used, so that `import elastic_jax` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from elastic_jax.config import HeadMode, ModelConfig, RouterConfig
    from elastic_jax.engine import Engine, EngineConfig
    from elastic_jax.generation import Generation, generate
    from elastic_jax.heads import Heads, load_heads
    from elastic_jax.kv_cache import CacheConfig
    from elastic_jax.model import ElasticForCausalLM, Output
    from elastic_jax.reward import ElasticRewardModel
    from elastic_jax.router import AttentionRouter
    from elastic_jax.routing import Routing
    from elastic_jax.sampling import Sampling
    from elastic_jax.weights import from_pretrained, save_pretrained
    from elastic_jax.weights.tokenizer import load_tokenizer

_HOME = {
    "AttentionRouter": "router",
    "CacheConfig": "kv_cache",
    "ElasticForCausalLM": "model",
    "ElasticRewardModel": "reward",
    "Engine": "engine",
    "EngineConfig": "engine",
    "Generation": "generation",
    "HeadMode": "config",
    "Heads": "heads",
    "ModelConfig": "config",
    "Output": "model",
    "RouterConfig": "config",
    "Routing": "routing",
    "Sampling": "sampling",
    "from_pretrained": "weights",
    "generate": "generation",
    "load_heads": "heads",
    "load_tokenizer": "weights.tokenizer",
    "save_pretrained": "weights",
}

__all__ = list(_HOME)  # pyrefly: ignore


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module 'elastic_jax' has no attribute {name!r}")
    return getattr(import_module(f"elastic_jax.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
