import jax
import jax.numpy as jnp
import numpy as np
import pytest

from train.router.losses import interval_sparsity_loss, logit_penalty, official_sparsity_loss, sparse_share


def test_sparse_share_counts_layers_and_heads():
    z = jnp.zeros((3, 1, 2, 4)).at[0, 0, 0, :].set(1.0)
    np.testing.assert_allclose(sparse_share(z), [[1 - 4 / 12, 1.0]], rtol=1e-6)


def official_example(msr, multipliers=None):
    multipliers = multipliers or {"linear": jnp.full(5, 0.4), "quadratic": jnp.full(5, 0.2)}
    target = jnp.array([0.6, 0.6, 1.0, 1.0, 1.0])
    return official_sparsity_loss(jnp.asarray(msr), jnp.array([[0, 0, 3, -1]]), target, multipliers)


def test_official_loss_of_the_hand_example():
    """Two Single QA samples and one Code sample, by hand: mean(0.042, 0.042) and 0.088, so 0.065."""
    np.testing.assert_allclose(official_example([[0.5, 0.7, 0.8, 0.0]]), 0.065, rtol=1e-6)


def test_official_multipliers_only_ever_grow():
    grow = jax.grad(lambda m: official_example([[0.5, 0.7, 0.8, 0.0]], m))(
        {"linear": jnp.zeros(5), "quadratic": jnp.zeros(5)}
    )
    assert (np.asarray(grow["linear"]) >= 0).all() and grow["linear"][0] > 0 and grow["linear"][1] == 0


@pytest.mark.parametrize(("msr", "direction"), [(0.4, -1), (0.6, 0), (0.9, 1)])
def test_interval_loss_pulls_towards_the_interval_and_rests_inside(msr, direction):
    low, high = jnp.full(5, 0.5), jnp.full(5, 0.7)
    zero = {"below": jnp.zeros(5), "above": jnp.zeros(5)}

    def loss(msr, multipliers=zero):
        return interval_sparsity_loss(msr[None, None], jnp.array([[2]]), low, high, multipliers, penalty=2.0)

    slope, ascent = jax.grad(loss, (0, 1))(jnp.asarray(msr), zero)
    assert np.sign(slope) == direction
    np.testing.assert_allclose(ascent["below"], [0, 0, 0.5 - msr, 0, 0], atol=1e-6)
    np.testing.assert_allclose(ascent["above"], [0, 0, msr - 0.7, 0, 0], atol=1e-6)


def test_logit_penalty_is_the_mean_squared_difference_of_the_samples_present():
    logits = jnp.zeros((2, 1, 3, 2, 2)).at[0, 0, 0, :, 1].set(2.0).at[:, 0, 2].set(9.0).at[1, 0, 2, 0, 0].set(50.0)
    assert float(logit_penalty(logits, jnp.array([[0, 3, -1]]))) == pytest.approx(2 * 4.0 / 8)
