"""One optimizer step, and the measurement on held-out data, for every objective.

AdamW with the schedule of judge and reward-model training.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from train.loop.step import accumulate, adamw, learning_rate, updated
from train.reward.config import AdamConfig
from train.reward.objectives import Objective


def make_optimizer(config: AdamConfig) -> optax.GradientTransformation:
    """Clip by the global norm, then AdamW; matrices decay, biases and the scales of norms do not."""
    return optax.chain(
        optax.clip_by_global_norm(config.clip),
        adamw(
            config, _rate(config), mask=lambda params: {path: not path.endswith((".bias", ".scale")) for path in params}
        ),
    )


def _rate(config: AdamConfig) -> optax.Schedule:
    return learning_rate(config.learning_rate, config, final_share=config.final_share)


Metrics = dict[str, jax.Array]


class RewardState(NamedTuple):
    """All that changes in training; `params` by dotted path, float32."""

    params: Any
    opt_state: Any
    step: jax.Array


def first_state(params: Mapping[str, jax.Array], config: AdamConfig) -> RewardState:
    """The state before the first step; the optimizer's arrays lie where the parameters do."""
    return RewardState(params, make_optimizer(config).init(dict(params)), jnp.zeros((), jnp.int32))


def make_step(
    objective: Objective, config: AdamConfig
) -> Callable[[RewardState, Any, Any], tuple[RewardState, Metrics]]:
    """Builds `step(state, frozen, batch) -> (state, metrics)`, jitted; the old state is consumed.

    `batch` has leading axes [accumulate, rows]. Loss and metrics are means over all of it.
    """
    optimizer, rate = make_optimizer(config), _rate(config)

    def step(state: RewardState, frozen: Any, batch: Any) -> tuple[RewardState, Metrics]:
        share = 1.0 / jnp.maximum(objective.weight(batch), 1e-8)

        def means(params: Any, micro: Any) -> tuple[jax.Array, Metrics]:
            found = {name: share * value for name, value in objective.sums(params, frozen, micro).items()}
            return found["loss"], found

        gradient, metrics = accumulate(partial(jax.grad(means, has_aux=True), state.params), batch)
        metrics |= {
            "grad_norm": optax.tree.norm(gradient),
            "learning_rate": jnp.asarray(rate(state.step)),
            "tokens": objective.tokens(batch),
        }
        return updated(state, gradient, optimizer), metrics

    return jax.jit(step, donate_argnums=0)


def make_measure(objective: Objective, batches: Sequence[Any]) -> Callable[[RewardState, Any], dict[str, float]]:
    """Builds `measure(state, frozen)`: means of the objective's metrics over batches with the leading axis [rows]."""
    weight = sum(float(objective.weight(batch)) for batch in batches)
    sums = jax.jit(objective.sums)

    def measure(state: RewardState, frozen: Any) -> dict[str, float]:
        found = [jax.device_get(sums(state.params, frozen, batch)) for batch in batches]
        return {name: sum(float(one[name]) for one in found) / weight for name in found[0]}

    return measure
