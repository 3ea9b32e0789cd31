"""Choosing the next token from logits."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from elastic_jax.errors import ConfigError


@dataclass(frozen=True)
class Sampling:
    """How the next token is drawn; the default is greedy."""

    temperature: float = 0.0
    """0 takes the most likely token; 1 samples the model's distribution."""
    top_k: int = 0
    """Sample among the k most likely tokens only; 0 for no limit."""
    top_p: float = 1.0
    """Sample among the fewest tokens whose probabilities sum to p; 1 for no limit."""

    def __post_init__(self) -> None:
        if self.temperature < 0:
            raise ConfigError(f"sampling temperature is {self.temperature}; want 0 (greedy) or more.")
        if self.top_k < 0:
            raise ConfigError(f"sampling top_k is {self.top_k}; want 0 (no limit) or more.")
        if not 0 < self.top_p <= 1:
            raise ConfigError(f"sampling top_p is {self.top_p}; want a probability in (0, 1].")


def next_token(logits_BV: jax.Array, key: jax.Array, sampling: Sampling) -> jax.Array:
    """Token ids int32 `[B]` from float32 logits `[B, V]`."""
    if sampling.temperature == 0:
        return jnp.argmax(logits_BV, axis=-1).astype(jnp.int32)
    logits_BV = logits_BV / sampling.temperature
    if sampling.top_k:
        kth = jax.lax.top_k(logits_BV, min(sampling.top_k, logits_BV.shape[-1]))[0][:, -1:]
        logits_BV = jnp.where(logits_BV < kth, -jnp.inf, logits_BV)
    if sampling.top_p < 1:
        logits_BV = _nucleus(logits_BV, sampling.top_p)
    return jax.random.categorical(key, logits_BV).astype(jnp.int32)


def _nucleus(logits_BV: jax.Array, top_p: float) -> jax.Array:
    descending = -jnp.sort(-logits_BV, axis=-1)
    before = jnp.cumsum(jax.nn.softmax(descending, axis=-1), axis=-1) - jax.nn.softmax(descending, axis=-1)
    smallest_kept = jnp.where(before < top_p, descending, jnp.inf).min(axis=-1, keepdims=True)
    return jnp.where(logits_BV < smallest_kept, -jnp.inf, logits_BV)
