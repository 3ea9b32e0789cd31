"""The learning rate of the method's description, and what decays."""

import jax.numpy as jnp
import numpy as np
import pytest

from train.reward.config import AdamConfig
from train.reward.step import learning_rate, make_optimizer

THREE_PERCENT = {0: 0.0, 1: 6.666667e-7, 2: 1.333333e-6, 3: 2e-6, 5: 1.998113e-6, 10: 1.976969e-6, 50: 1.143706e-6}
FIVE_PERCENT = {1: 4e-7, 3: 1.2e-6, 5: 2e-6, 10: 1.987725e-6, 50: 1.174321e-6}


@pytest.mark.parametrize(
    ("warmup", "wanted"), [(0.03, THREE_PERCENT | {99: 2.00472e-7, 100: 2e-7}), (0.05, FIVE_PERCENT)]
)
def test_schedule(warmup, wanted) -> None:
    rate = learning_rate(AdamConfig(steps=100, warmup=warmup))
    np.testing.assert_allclose([rate(step) for step in wanted], list(wanted.values()), rtol=1e-5, atol=1e-12)


def test_warmup_rounds_up_and_may_be_absent() -> None:
    assert np.isclose(learning_rate(AdamConfig(steps=359))(11), 2e-6)
    assert learning_rate(AdamConfig(steps=359))(10) < 2e-6
    assert np.isclose(learning_rate(AdamConfig(steps=9, warmup=0.0))(0), 2e-6)
    assert np.isfinite(learning_rate(AdamConfig(steps=1))(1))


@pytest.mark.parametrize("warmup", [0.03, 0.9])
def test_a_run_of_one_step_has_the_peak_rate(warmup: float) -> None:
    assert np.isclose(learning_rate(AdamConfig(steps=1, warmup=warmup))(0), 2e-6)


def test_matrices_decay_and_biases_and_norms_do_not() -> None:
    config = AdamConfig(steps=9, warmup=0.0, weight_decay=0.5, learning_rate=0.1)
    params = {path: jnp.ones(2) for path in ("a.kernel", "a.lora_up", "a.bias", "norm.scale")}
    optimizer = make_optimizer(config)
    zero = {path: jnp.zeros(2) for path in params}
    updates, _ = optimizer.update(zero, optimizer.init(params), params)
    assert {path for path, change in updates.items() if change.any()} == {"a.kernel", "a.lora_up"}
