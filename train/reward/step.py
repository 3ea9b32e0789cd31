"""One optimizer step, and the measurement on held-out data, for every objective.

AdamW with the schedule of judge and reward-model training.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from train.reward.config import AdamConfig
from train.reward.objectives import Objective


def learning_rate(config: AdamConfig) -> optax.Schedule:
    """Linear from 0 over ceil(warmup * steps) steps, but never all of them, then half a cosine to `final_share` of the
    peak."""
    warmup = min(math.ceil(config.warmup * config.steps), max(config.steps - 1, 0))
    rise = optax.linear_schedule(0.0, config.learning_rate, max(warmup, 1))
    fall = optax.cosine_decay_schedule(config.learning_rate, max(config.steps - warmup, 1), config.final_share)
    return optax.join_schedules([rise, fall], [warmup])


def make_optimizer(config: AdamConfig) -> optax.GradientTransformation:
    """Clip by the global norm, then AdamW; matrices decay, biases and the scales of norms do not."""
    return optax.chain(
        optax.clip_by_global_norm(config.clip),
        optax.adamw(
            learning_rate(config),
            config.beta1,
            config.beta2,
            config.eps,
            weight_decay=config.weight_decay,
            mask=_decays,
        ),
    )


def _decays(params: dict[str, Any]) -> dict[str, bool]:
    return {path: not path.endswith((".bias", ".scale")) for path in params}


Metrics = dict[str, jax.Array]


class TrainState(NamedTuple):
    """All that changes in training; `params` by dotted path, float32."""

    params: Any
    opt_state: Any
    step: jax.Array


def first_state(params: Mapping[str, jax.Array], config: AdamConfig) -> TrainState:
    """The state before the first step; the optimizer's arrays lie where the parameters do."""
    return TrainState(params, make_optimizer(config).init(dict(params)), jnp.zeros((), jnp.int32))


def make_step(objective: Objective, config: AdamConfig) -> Callable[[TrainState, Any, Any], tuple[TrainState, Metrics]]:
    """Builds `step(state, frozen, batch) -> (state, metrics)`, jitted; the old state is consumed.

    `batch` has leading axes [accumulate, rows]. Loss and metrics are means over all of it.
    """
    optimizer, rate = make_optimizer(config), learning_rate(config)

    def step(state: TrainState, frozen: Any, batch: Any) -> tuple[TrainState, Metrics]:
        share = 1.0 / jnp.maximum(objective.weight(batch), 1e-8)

        def means(params: Any, micro: Any) -> tuple[jax.Array, Metrics]:
            found = {name: share * value for name, value in objective.sums(params, frozen, micro).items()}
            return found["loss"], found

        slope_and_means = jax.grad(means, has_aux=True)

        def accumulate(total: Any, micro: Any) -> tuple[Any, None]:
            return jax.tree.map(jnp.add, total, slope_and_means(state.params, micro)), None

        one = jax.tree.map(lambda field: field[0], batch)
        zero = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(slope_and_means, state.params, one))
        (gradient, metrics), _ = jax.lax.scan(accumulate, zero, batch)
        updates, opt_state = optimizer.update(gradient, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        metrics |= {
            "grad_norm": optax.tree.norm(gradient),
            "learning_rate": jnp.asarray(rate(state.step)),
            "tokens": objective.tokens(batch),
        }
        return TrainState(params, opt_state, state.step + 1), metrics

    return jax.jit(step, donate_argnums=0)


def make_measure(objective: Objective, batches: Sequence[Any]) -> Callable[[TrainState, Any], dict[str, float]]:
    """Builds `measure(state, frozen)`: means of the objective's metrics over batches with the leading axis [rows]."""
    weight = sum(float(objective.weight(batch)) for batch in batches)
    sums = jax.jit(objective.sums)

    def measure(state: TrainState, frozen: Any) -> dict[str, float]:
        found = [jax.device_get(sums(state.params, frozen, batch)) for batch in batches]
        return {name: sum(float(one[name]) for one in found) / weight for name in found[0]}

    return measure
