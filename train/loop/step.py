"""What the optimizer step of every kind of training shares: the schedule, AdamW, accumulation, the new state.

A state of training is a named tuple of three: what learns, the optimizer's state, and the number of steps done. The
name of the first field differs from one kind of training to the next, because checkpoints store it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

import jax
import jax.numpy as jnp
import optax

from train.optim_config import AdamConfig, OptimConfig


def learning_rate(peak: float, config: OptimConfig | AdamConfig, *, final_share: float = 0.0) -> optax.Schedule:
    """Linear from 0 to `peak` over the warm-up, then half a cosine to `final_share` of it at the last step."""
    warmup = config.warmup_steps
    rise = optax.linear_schedule(0.0, peak, max(warmup, 1))
    fall = optax.cosine_decay_schedule(peak, max(config.steps - warmup, 1), final_share)
    return promoting(optax.join_schedules([rise, fall], [warmup]))


def adamw(config: OptimConfig | AdamConfig, rate: optax.Schedule, *, mask: Any = None) -> optax.GradientTransformation:
    """AdamW without clipping; weights decay where `mask` says so, everywhere without one."""
    inner = optax.adamw(rate, config.beta1, config.beta2, config.eps, weight_decay=config.weight_decay, mask=mask)
    return optax.GradientTransformation(inner.init, promoting(inner.update))


def promoting[**P, R](function: Callable[P, R]) -> Callable[P, R]:
    """`function` under JAX's standard promotion: optax raises decay rates, which are floats, to integer counts."""

    @wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        with jax.numpy_dtype_promotion("standard"):
            return function(*args, **kwargs)

    return run


def accumulate(contribution: Callable[[Any], Any], micro_batches: Any) -> Any:
    """Sum of `contribution(micro_batch)`, a tree of arrays, over the leading axis of `micro_batches`.

    One micro-batch is computed after the other, so that memory is needed for one of them only.
    """

    def add(total: Any, micro_batch: Any) -> tuple[Any, None]:
        return jax.tree.map(jnp.add, total, contribution(micro_batch)), None

    first = jax.tree.map(lambda field: field[0], micro_batches)
    shapes = jax.eval_shape(contribution, first)
    zero = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    return jax.lax.scan(add, zero, micro_batches)[0]


def updated(state: Any, gradient: Any, optimizer: optax.GradientTransformation) -> Any:
    """The state after one update by this gradient, a named tuple like `state`."""
    learnt, opt_state, step = state
    updates, opt_state = optimizer.update(gradient, opt_state, learnt)
    return type(state)(optax.apply_updates(learnt, updates), opt_state, step + 1)
