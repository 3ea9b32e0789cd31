"""AdamW with the schedule of judge and reward-model training."""

from __future__ import annotations

import math
from typing import Any

import optax

from train.reward.config import AdamConfig


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
