"""Log-probabilities of labels against the worked numbers of the method's description, and whatever the chunk."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from train.token_losses import label_log_probs, token_kl, token_nll

LOGITS = jnp.array([[((7 * t + 3 * v) % 11) / 4 - 1 for v in range(5)] for t in range(8)], jnp.float32)
LABELS = jnp.array([3, 0, 2, 4, 1, 2, 0, 0])
"""The tokens 1 3 0 2 4 | 1 2 0 one later; two sequences, whose border is not learnt."""
LEARNT = jnp.array([False, True, True, True, False, True, True, False])
UNIT = jnp.eye(5)


@pytest.mark.parametrize("chunk", [2, 3, 512])
def test_worked_example(chunk: int) -> None:
    got = label_log_probs(LOGITS, UNIT, LABELS, LEARNT, chunk=chunk)
    wanted = [0, -1.66658561, -0.75015907, -3.24690391, 0, -0.75015907, -1.19767184, 0]
    np.testing.assert_allclose(got, wanted, rtol=1e-6)
    np.testing.assert_allclose(-got.sum() / 5, 1.5222958999, rtol=1e-6)


@pytest.fixture
def inputs():
    rng = np.random.default_rng(0)
    hidden = jnp.asarray(rng.normal(size=(2, 11, 6)), jnp.float32)
    head = jnp.asarray(rng.normal(size=(6, 17)), jnp.float32)
    labels = jnp.asarray(rng.integers(0, 17, (2, 11)), jnp.int32)
    weights = jnp.asarray(rng.uniform(0.1, 1.0, (2, 11)) * (rng.random((2, 11)) < 0.6), jnp.float32)
    return hidden, head, labels, weights


def frozen_head_nll(hidden, head, labels, needed, chunk):
    return token_nll(hidden, head, labels, needed, chunk)


def learning_head_nll(hidden, head, labels, needed, chunk):
    return -label_log_probs(hidden, head, labels, needed, chunk=chunk)


@pytest.mark.parametrize("chunk", [1, 4, 22, 64])
@pytest.mark.parametrize(("chunked", "learning"), [(frozen_head_nll, (0,)), (learning_head_nll, (0, 1))])
def test_values_and_gradients_are_those_of_the_whole_logits(inputs, chunked, learning, chunk) -> None:
    hidden, head, labels, weights = inputs

    def whole(hidden, head):
        return -jnp.take_along_axis(jax.nn.log_softmax(hidden @ head), labels[..., None], axis=-1)[..., 0]

    def in_chunks(hidden, head):
        return chunked(hidden, head, labels, weights > 0, chunk)

    got, want = (
        jax.value_and_grad(lambda *x, nll=nll: (weights * nll(*x)).sum(), learning)(hidden, head)
        for nll in (in_chunks, whole)
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=5e-6), got, want)
    nll = np.asarray(in_chunks(hidden, head))
    assert (nll[weights == 0] == 0).all() and (nll[weights > 0] > 0).all()
    assert not got[1][0][weights == 0].any(), "tokens that are not needed get no gradient"


@pytest.mark.parametrize("chunked", [frozen_head_nll, learning_head_nll])
def test_no_whole_logit_matrix_is_kept(inputs, chunked) -> None:
    hidden, head, labels, weights = inputs
    grad = jax.grad(lambda h: chunked(h, head, labels, weights > 0, 4).sum())
    shapes = str(jax.make_jaxpr(grad)(hidden))
    assert "4,17" in shapes and not any(whole in shapes for whole in ("22,17", "24,17", "6,4,17", "2,11,17"))


@pytest.mark.parametrize("chunked", [frozen_head_nll, learning_head_nll])
def test_nothing_to_learn_is_zero_with_finite_slopes(inputs, chunked) -> None:
    hidden, head, labels, weights = inputs
    value, slope = jax.value_and_grad(lambda h: chunked(h, head, labels, weights > 2, 4).sum())(hidden)
    assert value == 0 and not slope.any()


@pytest.mark.parametrize("chunk", [4, 64])
def test_divergence_and_its_gradient_are_those_of_the_whole_logits(inputs, chunk) -> None:
    hidden, head, _, weights = inputs
    full = hidden[::-1] + 0.3

    def whole(hidden):
        want, have = jax.nn.log_softmax(full @ head), jax.nn.log_softmax(hidden @ head)
        return (weights * (jnp.exp(want) * (want - have)).sum(-1)).sum()

    def in_chunks(hidden):
        return (weights * token_kl(hidden, full, head, weights > 0, chunk=chunk)).sum()

    got, want = (jax.jit(jax.value_and_grad(loss))(hidden) for loss in (in_chunks, whole))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=5e-6), got, want)
    kl = np.asarray(token_kl(hidden, full, head, weights > 0, chunk=chunk))
    assert (kl[weights == 0] == 0).all() and (kl[weights > 0] > 0).all()
    np.testing.assert_allclose(token_kl(full, full, head, weights > 0, chunk=chunk), 0, atol=1e-6)
