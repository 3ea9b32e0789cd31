import jax
import jax.numpy as jnp
import numpy as np
import pytest

from train.config import GateConfig, OptimConfig, SparsityConfig
from train.router.optim import Trainable, first_multipliers, make_optimizer, temperature


@pytest.mark.parametrize(("step", "want"), [(0, 1.5), (45, 1.4268), (90, 1.25), (135, 1.0732), (180, 1.0), (299, 1.0)])
def test_cosine_temperature_of_the_released_code(step, want):
    np.testing.assert_allclose(temperature(GateConfig(), step, 300), want, atol=5e-5)


def test_exponential_temperature_of_the_paper():
    gates = GateConfig(schedule="exponential", start=2.0, end=0.3, decay=0.6)
    np.testing.assert_allclose(temperature(gates, 1, 300), 2.0 * np.exp(-0.6), rtol=1e-6)
    np.testing.assert_allclose(temperature(gates, 50, 300), 0.3, rtol=1e-6)


def run_updates(optimizer, trainable, gradient, count=1):
    state = optimizer.init(trainable)
    for _ in range(count):
        updates, state = optimizer.update(gradient, state, trainable)
        trainable = jax.tree.map(jnp.add, trainable, updates)
    return trainable


def test_official_multipliers_ascend_by_about_the_learning_rate():
    config = OptimConfig(steps=300, warmup=0.2, lambda_learning_rate=1e-3)
    optimizer = make_optimizer(config, SparsityConfig(loss="official"))
    names = ("linear", "quadratic")
    start = Trainable({"w": jnp.ones(3)}, {name: jnp.full(5, 0.2) for name in names})
    gradient = Trainable({"w": jnp.ones(3)}, {name: jnp.full(5, 0.3) for name in names})
    end = run_updates(optimizer, start, gradient, 300)
    grown = np.asarray(end.multipliers["linear"]) - 0.2
    assert (end.router["w"] < 1).all()
    assert (grown > 0.10).all() and (grown <= 0.15).all()


def test_official_multipliers_start_within_half():
    values = first_multipliers(SparsityConfig(loss="official"), 5, jax.random.key(0))
    assert all(((value >= 0) & (value < 0.5)).all() for value in values.values())
    assert len(np.unique(np.concatenate(list(values.values())))) == 10


def test_interval_multipliers_follow_the_violation_and_stay_within_bounds():
    optimizer = make_optimizer(OptimConfig(), SparsityConfig(dual_learning_rate=0.5, dual_max=0.3))
    start = Trainable({"w": jnp.ones(2)}, {"below": jnp.full(5, 0.1), "above": jnp.full(5, 0.1)})
    gradient = Trainable({"w": jnp.zeros(2)}, {"below": jnp.array([0.2, 0.9, 0.0, -0.1, -0.9]), "above": jnp.zeros(5)})
    end = run_updates(optimizer, start, gradient)
    np.testing.assert_allclose(end.multipliers["below"], [0.2, 0.3, 0.1, 0.05, 0.0], atol=1e-7)
