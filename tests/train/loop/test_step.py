"""The schedules of the released router run and of LongRM's description, what decays, and accumulation."""

import jax.numpy as jnp
import numpy as np
import pytest

from train.loop.step import accumulate, learning_rate
from train.optim_config import AdamConfig, OptimConfig
from train.reward.step import make_optimizer

THREE_PERCENT = {0: 0.0, 1: 6.666667e-7, 2: 1.333333e-6, 3: 2e-6, 5: 1.998113e-6, 10: 1.976969e-6, 50: 1.143706e-6}
FIVE_PERCENT = {1: 4e-7, 3: 1.2e-6, 5: 2e-6, 10: 1.987725e-6, 50: 1.174321e-6}


@pytest.mark.parametrize(
    ("warmup", "wanted"), [(0.03, THREE_PERCENT | {99: 2.00472e-7, 100: 2e-7}), (0.05, FIVE_PERCENT)]
)
def test_schedule(warmup, wanted) -> None:
    rate = learning_rate(2e-6, AdamConfig(steps=100, warmup=warmup), final_share=0.1)
    np.testing.assert_allclose([rate(step) for step in wanted], list(wanted.values()), rtol=1e-5, atol=1e-12)


@pytest.mark.parametrize(
    ("config", "first_at_peak"),
    [
        (AdamConfig(steps=359, warmup=0.03), 11),
        (OptimConfig(steps=359, warmup=0.0306), 11),
        (AdamConfig(steps=9, warmup=0.0), 0),
        (AdamConfig(steps=1, warmup=0.9), 0),
        (OptimConfig(steps=10, warmup=0.99), 10),
    ],
)
def test_warmup_rounds_up_for_rewards_and_to_the_nearest_for_routers(config, first_at_peak: int) -> None:
    rate = learning_rate(1.0, config)
    assert np.isclose(rate(first_at_peak), 1.0) and all(rate(step) < 1 for step in range(first_at_peak))


def test_learning_rate_sums_to_that_of_the_released_run():
    rate = learning_rate(1e-3, OptimConfig(steps=300, warmup=0.2))
    np.testing.assert_allclose(sum(float(rate(step)) for step in range(300)), 0.15, rtol=5e-3)
    assert rate(0) == 0 and float(rate(60)) == pytest.approx(1e-3) and float(rate(300)) == pytest.approx(0, abs=1e-9)


def test_accumulation_sums_every_array_over_the_micro_batches() -> None:
    micro_batches = {"a": jnp.arange(6.0).reshape(3, 2), "b": jnp.array([1, 2, 3])}
    total = accumulate(lambda micro: (micro["a"] * 2, micro["b"]), micro_batches)
    np.testing.assert_array_equal(total[0], [12.0, 18.0])
    assert total[1] == 6 and total[1].dtype == jnp.int32


def test_matrices_decay_and_biases_and_norms_do_not() -> None:
    config = AdamConfig(steps=9, warmup=0.0, weight_decay=0.5, learning_rate=0.1)
    params = {path: jnp.ones(2) for path in ("a.kernel", "a.lora_up", "a.bias", "norm.scale")}
    optimizer = make_optimizer(config)
    zero = {path: jnp.zeros(2) for path in params}
    updates, _ = optimizer.update(zero, optimizer.init(params), params)
    assert {path for path, change in updates.items() if change.any()} == {"a.kernel", "a.lora_up"}
