"""Choosing the next token from logits."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from elastic_jax.errors import ConfigError, shown


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
        for name, want in (("temperature", "0 (greedy) or more"), ("top_p", "a probability in (0, 1]")):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float | np.number) or not math.isfinite(value):
                raise ConfigError(f"sampling {name} is {shown(value)}; want {want}.")
        if isinstance(self.top_k, bool) or not isinstance(self.top_k, int | np.integer):
            raise ConfigError(f"sampling top_k is {shown(self.top_k)}; want a whole number, 0 for no limit.")
        if self.temperature < 0:
            raise ConfigError(f"sampling temperature is {self.temperature}; want 0 (greedy) or more.")
        if not 0 <= self.top_k < 2**31:
            raise ConfigError(f"sampling top_k is {self.top_k}; want 0 (no limit) to 2**31 - 1.")
        if not 0 < self.top_p <= 1:
            raise ConfigError(f"sampling top_p is {self.top_p}; want a probability in (0, 1].")


class RowSampling(NamedTuple):
    """How the next tokens of a row are drawn; with arrays `[B]`, of all rows, so that one program serves them."""

    temperature: Any = 0.0
    top_k: Any = 0
    top_p: Any = 1.0
    seed: Any = 0
    index: Any = 0
    """How many tokens of the row were drawn before."""

    @classmethod
    def of(cls, sampling: Sampling | RowSampling) -> RowSampling:
        """Temperature, top_k and top_p as arrays: a compiled program then serves all of their values."""
        return cls(
            jnp.asarray(sampling.temperature, jnp.float32),
            jnp.asarray(sampling.top_k, jnp.int32),
            jnp.asarray(sampling.top_p, jnp.float32),
        )

    @classmethod
    def stack(cls, rows: Sequence[RowSampling]) -> RowSampling:
        """The settings of single rows as arrays."""
        columns = zip(cls(), zip(*rows, strict=True), strict=True)
        return cls(*(jnp.asarray(column, type(default)) for default, column in columns))


def next_token(logits_BV: jax.Array, key: jax.Array, sampling: Sampling | RowSampling) -> jax.Array:
    """Token ids int32 `[B]` from float32 logits `[B, V]`; all rows draw with the one `key`."""
    sampling = RowSampling.of(sampling)

    def draw(logits_BV: jax.Array) -> jax.Array:
        return jax.random.categorical(key, _limited(logits_BV, sampling)).astype(jnp.int32)

    def most_likely(logits_BV: jax.Array) -> jax.Array:
        return jnp.argmax(logits_BV, axis=-1).astype(jnp.int32)

    return jax.lax.cond(sampling.temperature > 0, draw, most_likely, logits_BV)


def next_tokens(logits_BTV: jax.Array, rows: RowSampling) -> jax.Array:
    """Token ids int32 `[B, T]` from float32 logits `[B, T, V]` of consecutive tokens of every row.

    A row draws what `next_token` draws for it alone, from the key `fold_in(key(seed), index)`; -1 where logits are NaN
    or infinite.
    """
    greedy_BT = jnp.argmax(logits_BTV, axis=-1).astype(jnp.int32)

    def one_row(logits_TV: jax.Array, greedy_T: jax.Array, row: RowSampling) -> jax.Array:
        index_T = row.index + jnp.arange(logits_TV.shape[0])
        keys_T = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(jax.random.key(row.seed), index_T)
        drawn_T = jax.vmap(jax.random.categorical)(keys_T, _limited(logits_TV, row)).astype(jnp.int32)
        return jnp.where(row.temperature > 0, drawn_T, greedy_T)

    def draw(_: None) -> jax.Array:
        return jax.vmap(one_row)(logits_BTV, greedy_BT, rows)

    tokens_BT = jax.lax.cond((rows.temperature > 0).any(), draw, lambda _: greedy_BT, None)
    return jnp.where(jnp.isfinite(logits_BTV).all(-1), tokens_BT, -1)


def _limited(logits_XV: jax.Array, row: RowSampling) -> jax.Array:
    """Logits over the temperature, -inf for tokens outside top_k and top_p. The settings are those of one row."""
    # from the largest on, so that no quotient overflows, however low the temperature
    logits_XV = logits_XV - logits_XV.max(axis=-1, keepdims=True)
    logits_XV = logits_XV / jnp.where(row.temperature > 0, row.temperature, 1.0)

    def most_likely(logits_XV: jax.Array) -> jax.Array:
        return jnp.where(_ranks(logits_XV) < row.top_k, logits_XV, -jnp.inf)

    def nucleus(logits_XV: jax.Array) -> jax.Array:
        probabilities = jax.nn.softmax(-jnp.sort(-logits_XV, axis=-1), axis=-1)
        before = jnp.cumsum(probabilities, axis=-1) - probabilities
        kept = (before < row.top_p) | (before == 0)  # a top_p that underflows leaves the most likely token
        return jnp.where(_ranks(logits_XV) < kept.sum(axis=-1, keepdims=True), logits_XV, -jnp.inf)

    logits_XV = jax.lax.cond(row.top_k > 0, most_likely, lambda x: x, logits_XV)
    return jax.lax.cond(row.top_p < 1, nucleus, lambda x: x, logits_XV)


def _ranks(logits_XV: jax.Array) -> jax.Array:
    """0 for the most likely token, 1 for the next, and so on; of equal ones the first comes first, as in argmax."""
    return jnp.argsort(jnp.argsort(-logits_XV, axis=-1), axis=-1)
