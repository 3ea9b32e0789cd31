"""Optimizer of router training: routers descend, multipliers ascend. And the temperature of the gates."""

from __future__ import annotations

import math
from collections.abc import Hashable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from train.config import GateConfig, OptimConfig, SparsityConfig
from train.loop.step import adamw, learning_rate
from train.router.losses import Multipliers

RouterParams = dict[str, jax.Array]


class Trainable(NamedTuple):
    """Everything that learns; the backbone is not in it."""

    router: RouterParams
    multipliers: Multipliers


def temperature(config: GateConfig, step: jax.Array | int, steps: int) -> jax.Array:
    """Gate temperature at a 0-based step: cosine from `start` to `end` over a fraction of the steps (released code), or
    max(end, start * exp(-rate * step)) (paper, appendix F)."""
    step = jnp.asarray(step, jnp.float32)
    if config.schedule == "exponential":
        return jnp.maximum(config.end, config.start * jnp.exp(-config.decay * step))
    length = math.ceil(config.decay * steps)
    wave = 0.5 * (1.0 + jnp.cos(jnp.pi * jnp.minimum(step / length, 1.0)))
    return config.end + (config.start - config.end) * wave


def first_multipliers(config: SparsityConfig, tasks: int, key: jax.Array) -> Multipliers:
    """Official: drawn from U(0, 0.5); interval: `dual_start`."""
    if config.loss == "official":
        first, second = jax.random.uniform(key, (2, tasks), jnp.float32, 0.0, 0.5)
        return {"linear": first, "quadratic": second}
    return {name: jnp.full((tasks,), config.dual_start, jnp.float32) for name in ("below", "above")}


def make_optimizer(config: OptimConfig, sparsity: SparsityConfig) -> optax.GradientTransformation:
    """The update of a `Trainable`.

    Official: one global clip over all, AdamW on both groups, the multipliers' with the gradient's sign turned.
    Interval: clip and AdamW on the routers, plain projected gradient ascent on the multipliers, whose gradient is the
    violation itself.
    """

    routers = adamw(config, learning_rate(config.learning_rate, config))
    if sparsity.loss == "official":
        ascent = optax.chain(optax.scale(-1.0), adamw(config, learning_rate(config.lambda_learning_rate, config)))
        return optax.chain(optax.clip_by_global_norm(config.clip), _by_group(routers, ascent))
    routers = optax.chain(optax.clip_by_global_norm(config.clip), routers)
    return _by_group(routers, _projected_ascent(sparsity.dual_learning_rate, sparsity.dual_max))


def _by_group(
    router: optax.GradientTransformation, multipliers: optax.GradientTransformation
) -> optax.GradientTransformation:
    labels = Trainable._make(("router", "multipliers"))
    transforms: dict[Hashable, optax.GradientTransformation] = {"router": router, "multipliers": multipliers}
    return optax.partition(transforms, labels)


def _projected_ascent(rate: float, largest: float) -> optax.GradientTransformation:
    """value <- clip(value + rate * gradient, 0, largest)."""

    def update(updates: Any, state: optax.OptState, params: Any = None) -> tuple[Any, optax.OptState]:
        moved = jax.tree.map(lambda g, value: jnp.clip(value + rate * g, 0.0, largest) - value, updates, params)
        return moved, state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)
