"""Log-probabilities of labels against the worked numbers of the method's description, and whatever the chunk."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from train.token_losses import label_log_probs

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


def test_gradients_reach_states_and_head_and_only_what_is_needed() -> None:
    def loss(hidden, head, chunk):
        return (label_log_probs(hidden, head, LABELS, LEARNT, chunk=chunk) * jnp.arange(1.0, 9)).sum()

    def direct(hidden, head):
        log_probs = jnp.take_along_axis(jax.nn.log_softmax(hidden @ head), LABELS[:, None], axis=1)[:, 0]
        return (jnp.where(LEARNT, log_probs, 0.0) * jnp.arange(1.0, 9)).sum()

    want = jax.grad(direct, (0, 1))(LOGITS, UNIT)
    got = jax.grad(loss, (0, 1))(LOGITS, UNIT, 3)
    for one, other in zip(got, want, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)
    assert not got[0][~np.asarray(LEARNT)].any()


def test_nothing_to_learn_is_zero_with_finite_slopes() -> None:
    value, slope = jax.value_and_grad(lambda h: label_log_probs(h, UNIT, LABELS, LEARNT & False).sum())(LOGITS)
    assert value == 0 and not slope.any()
