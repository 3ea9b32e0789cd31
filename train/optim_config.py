"""Settings of AdamW with linear warm-up and cosine decay, for router training and for reward training."""

from __future__ import annotations

import math
from dataclasses import dataclass

from elastic_jax.errors import ConfigError
from elastic_jax.settings import check_least


@dataclass(frozen=True)
class OptimConfig:
    """AdamW with linear warm-up and cosine decay to zero."""

    steps: int = 300
    """Optimizer steps."""
    rows: int = 1
    """Packed rows in one micro-batch, over all devices."""
    accumulate: int = 1
    """Micro-batches in one optimizer step; their gradients are averaged."""
    learning_rate: float = 1e-3
    """Peak learning rate of the routers."""
    lambda_learning_rate: float = 1e-3
    """Peak learning rate of the multipliers of the official loss."""
    warmup: float = 0.2
    """Fraction of the steps in linear warm-up."""
    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-8
    weight_decay: float = 0.1
    clip: float = 5.0
    """Largest global gradient norm."""

    def __post_init__(self) -> None:
        check_least(self, 1, "steps")
        _check(self)

    @property
    def warmup_steps(self) -> int:
        """Steps of the warm-up, rounded as the released code does."""
        return round(self.warmup * self.steps)


@dataclass(frozen=True)
class AdamConfig:
    """AdamW with linear warm-up and cosine decay."""

    steps: int = 0
    """Optimizer steps; 0 for one pass over the data."""
    rows: int = 1
    """Prompts in one micro-batch; for sft, packed rows."""
    accumulate: int = 32
    """Micro-batches in one optimizer step; the gradient is that of all their pairs or learnt tokens at once."""
    learning_rate: float = 2e-6
    """Peak learning rate."""
    final_share: float = 0.1
    """Learning rate of the last step, as a share of the peak."""
    warmup: float = 0.03
    """Fraction of the steps in linear warm-up."""
    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-8
    weight_decay: float = 0.0
    clip: float = 1.0
    """Largest global gradient norm."""

    def __post_init__(self) -> None:
        if self.steps < 0 or not 0.0 <= self.final_share <= 1.0:
            raise ConfigError(
                f"steps {self.steps}, final_share {self.final_share}: want steps >= 0 and 0 <= final_share <= 1."
            )
        _check(self)

    @property
    def warmup_steps(self) -> int:
        """Steps of the warm-up, rounded up; at least one step of a run comes after it."""
        return min(math.ceil(self.warmup * self.steps), max(self.steps - 1, 0))


def _check(config: OptimConfig | AdamConfig) -> None:
    check_least(config, 1, "rows", "accumulate")
    if not 0.0 <= config.warmup < 1.0:
        raise ConfigError(f"warmup is {config.warmup}; want a fraction of the steps, 0 <= warmup < 1.")
    if config.learning_rate <= 0 or config.clip <= 0:
        raise ConfigError(
            f"learning_rate {config.learning_rate}, clip {config.clip}: want more than 0 (clip 1e9 for no clipping)."
        )
