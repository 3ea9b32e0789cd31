"""Losses against the worked numbers of the method's description, and the properties that set them apart."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from train.reward import losses
from train.reward.losses import weighted_mean, wins

CHOSEN = jnp.array([-0.2, -0.7, -1.1, -0.4])
FIRST = jnp.array([-0.9, -1.3, -0.8])
SECOND = jnp.array([-2.0, -0.1, -0.6, -1.5, -1.8])


def of_batch(loss):
    """The mean over pairs, every rejected response being there."""
    return lambda chosen, rejected, *more, **options: loss(
        chosen, rejected, jnp.ones_like(rejected), *more, **options
    ).mean()


simpo_loss, bradley_terry_loss, dpo_loss, accuracy = map(
    of_batch, (losses.simpo_loss, losses.bradley_terry_loss, losses.dpo_loss, wins)
)


def means(*tokens: jax.Array) -> jax.Array:
    return jnp.stack([t.mean() for t in tokens])


@pytest.mark.parametrize(
    ("rejected", "options", "wanted"),
    [
        ([FIRST], {}, 0.4740769842),
        ([FIRST, SECOND], {}, 0.3868710061),
        ([FIRST, SECOND], {"rejects": "each"}, 0.3936693358),
        ([FIRST, SECOND], {"label_smoothing": 0.1}, 0.4618710061),
        ([FIRST, SECOND], {"form": "hinge"}, 0.25),
        ([FIRST, SECOND], {"beta": 0.5, "gamma": 2.5}, 2.3502065589),
        ([FIRST, SECOND], {"nll_weight": 0.05}, 0.4168710061),
        ([CHOSEN], {}, 0.9740769842),
    ],
)
def test_simpo(rejected, options, wanted) -> None:
    loss = simpo_loss(means(CHOSEN), means(*rejected)[None], **options)
    np.testing.assert_allclose(loss, wanted, rtol=1e-6)


def test_simpo_over_a_batch() -> None:
    chosen, rejected = jnp.array([-0.6, -1.2]), jnp.array([[-1.1, -1.1], [-0.3, -0.3]])
    np.testing.assert_allclose(simpo_loss(chosen, rejected), 1.5994192975, rtol=1e-6)
    assert accuracy(chosen, rejected) == 0.5


SCORES = jnp.array([1.5, -0.2, 3.0])
ONE = jnp.array([[0.5], [0.3], [3.0]])
TWO = jnp.array([[0.5, -1.0], [0.3, 0.7], [3.0, 1.0]])


@pytest.mark.parametrize(
    ("rejected", "options", "wanted"),
    [
        (ONE, {}, 0.6601619508),
        (ONE, {"margin_P": 0.5}, 0.9204718853),
        (ONE, {"centring": 0.01}, 0.7935286174),
        (TWO, {}, 0.5255572956),
        (TWO, {"rejects": "each"}, 0.5712429120),
    ],
)
def test_bradley_terry(rejected, options, wanted) -> None:
    np.testing.assert_allclose(bradley_terry_loss(SCORES, rejected, **options), wanted, rtol=1e-6)


def test_bradley_terry_gradient_stability_and_ties() -> None:
    slope = jax.grad(bradley_terry_loss)(SCORES, ONE)
    np.testing.assert_allclose(slope, [-0.08964714, -0.20748644, -0.16666667], rtol=1e-6)
    assert accuracy(SCORES, ONE) == np.float32(1 / 3)
    far = [bradley_terry_loss(jnp.array([d]), jnp.array([[0.0]])) for d in (100.0, -100.0)]
    np.testing.assert_allclose(far, [0.0, 100.0], atol=1e-6)


def test_only_centring_sees_a_shift_of_all_scores() -> None:
    np.testing.assert_allclose(bradley_terry_loss(SCORES + 7, ONE + 7), bradley_terry_loss(SCORES, ONE), rtol=1e-6)
    moved = bradley_terry_loss(SCORES + 7, ONE + 7, centring=0.01)
    assert moved > bradley_terry_loss(SCORES, ONE, centring=0.01) + 1


@pytest.mark.parametrize(
    ("options", "wanted"), [({}, 0.6646083621), ({"label_smoothing": 0.1}, 0.6706083621), ({"form": "ipo"}, 20.17)]
)
def test_dpo(options, wanted) -> None:
    loss = dpo_loss(
        jnp.array([-10.0, -8.0]),
        jnp.array([[-12.0], [-7.5]]),
        jnp.array([-10.5, -8.2]),
        jnp.array([[-11.0], [-8.0]]),
        **options,
    )
    np.testing.assert_allclose(loss, wanted, rtol=1e-6)


def test_a_response_without_weight_gives_zero_and_finite_slopes() -> None:
    value, slope = jax.value_and_grad(weighted_mean)(CHOSEN, jnp.zeros(4))
    assert value == 0 and np.isfinite(slope).all()
    weights = jnp.array([0.0, 1, 1, 0])
    assert np.isclose(weighted_mean(CHOSEN, weights), -0.9)


@pytest.mark.parametrize("rejects", ["mean", "each"])
@pytest.mark.parametrize("loss", [losses.simpo_loss, losses.bradley_terry_loss])
def test_a_rejected_response_that_is_not_there_changes_nothing(loss, rejects) -> None:
    wanted = loss(SCORES, ONE, jnp.ones((3, 1)), rejects=rejects)
    padded = jnp.concatenate([ONE, jnp.full((3, 1), 50.0)], axis=1)
    got = loss(SCORES, padded, jnp.array([[1.0, 0.0]] * 3), rejects=rejects)
    np.testing.assert_allclose(got, wanted, rtol=1e-6)
