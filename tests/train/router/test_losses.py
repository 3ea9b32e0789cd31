import jax
import jax.numpy as jnp
import numpy as np
import pytest

from train.router.losses import interval_sparsity_loss, logit_penalty, official_sparsity_loss, sparse_share
from train.token_losses import token_nll


@pytest.fixture
def head_inputs():
    rng = np.random.default_rng(0)
    hidden = jnp.asarray(rng.normal(size=(2, 11, 6)), jnp.float32)
    head = jnp.asarray(rng.normal(size=(6, 17)), jnp.float32)
    labels = jnp.asarray(rng.integers(0, 17, (2, 11)), jnp.int32)
    weights = jnp.asarray(rng.uniform(0.1, 1.0, (2, 11)) * (rng.random((2, 11)) < 0.6), jnp.float32)
    return hidden, head, labels, weights


def full_nll(hidden, head, labels):
    return -jnp.take_along_axis(jax.nn.log_softmax(hidden @ head), labels[..., None], axis=-1)[..., 0]


@pytest.mark.parametrize("chunk", [1, 4, 22, 64])
def test_chunked_cross_entropy_equals_the_full_one_in_value_and_gradient(head_inputs, chunk):
    hidden, head, labels, weights = head_inputs
    chunked = jax.value_and_grad(lambda h: (weights * token_nll(h, head, labels, weights > 0, chunk)).sum())
    full = jax.value_and_grad(lambda h: (weights * full_nll(h, head, labels)).sum())
    for got, want in zip(chunked(hidden), full(hidden), strict=True):
        np.testing.assert_allclose(got, want, rtol=2e-5, atol=2e-6)


def test_cross_entropy_is_zero_where_not_needed(head_inputs):
    hidden, head, labels, weights = head_inputs
    nll = np.asarray(token_nll(hidden, head, labels, weights > 0, 4))
    assert (nll[weights == 0] == 0).all() and (nll[weights > 0] > 0).all()


def test_cross_entropy_keeps_no_whole_logit_matrix(head_inputs):
    hidden, head, labels, weights = head_inputs
    grad = jax.grad(lambda h: token_nll(h, head, labels, weights > 0, 4).sum())
    shapes = str(jax.make_jaxpr(grad)(hidden))
    assert "4,17" in shapes and "22,17" not in shapes and "2,11,17" not in shapes


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
