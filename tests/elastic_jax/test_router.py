from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from elastic_jax.config import RouterConfig
from elastic_jax.layout import make_layout
from elastic_jax.router import AttentionRouter, argmax_gates, pool_keys, pooling_weights, sample_gates


@partial(jax.jit, static_argnames="config")
def pooled(keys, prompt_lengths_BM, config, **rows):
    layout = make_layout(keys.shape[:2], **rows)
    return pool_keys(keys, pooling_weights(layout, prompt_lengths_BM, config), layout)


def test_boundary_pooling_is_the_mean_of_first_and_last_hundred_overlap_counted_twice():
    lengths = np.array([1, 50, 99, 100, 150, 199, 200, 201, 700])
    keys = np.random.default_rng(0).normal(size=(9, 700, 2, 4)).astype(np.float32)
    result = pooled(keys, lengths[:, None], RouterConfig(), lengths=lengths)
    for row, length in enumerate(lengths):
        first, last = keys[row, : min(100, length)], keys[row, max(0, length - 100) : length]
        np.testing.assert_allclose(result[row, 0], np.concatenate([first, last]).mean(0), atol=1e-6)


@pytest.mark.parametrize("pooling", ["boundary", "prompt"])
def test_padded_and_packed_rows_pool_like_the_sequence_alone(pooling):
    config = RouterConfig(pooling=pooling, pool_window=20)
    lengths, prompts = (150, 70), (130, 70)
    keys = np.random.default_rng(0).normal(size=(2, 150, 2, 4)).astype(np.float32)
    alone = [
        pooled(keys[i : i + 1, :length], np.array([[prompt]]), config)[0, 0]
        for i, (length, prompt) in enumerate(zip(lengths, prompts, strict=True))
    ]
    row = np.full((1, 384, 2, 4), 7.0, np.float32)
    segments = np.zeros((1, 384), np.int32)
    for i, (length, start) in enumerate(zip(lengths, (0, 256), strict=True)):
        row[:, start : start + length] = keys[i, :length]
        segments[:, start : start + length] = i + 1
    result = pooled(row, np.array([[*prompts, 0]]), config, segment_ids=segments)
    np.testing.assert_allclose(result[0, :2], np.stack(alone), atol=1e-6)
    assert (result[0, 2] == 0).all()
    result = pooled(row, np.array([[130]]), config, lengths=np.array([150]))
    np.testing.assert_allclose(result[0, 0], alone[0], atol=1e-6)


def test_parameter_count_of_the_paper():
    router = AttentionRouter(128, RouterConfig(), rngs=nnx.Rngs(0))
    assert sum(leaf.size for leaf in jax.tree.leaves(nnx.state(router))) == 263_682


def test_decision_breaks_ties_towards_sparse_and_obeys_the_bias():
    logits = jnp.array([[0.3, 0.3], [0.1, 0.2], [0.2, 0.1]])
    np.testing.assert_array_equal(argmax_gates(logits), [0.0, 1.0, 0.0])
    np.testing.assert_array_equal(argmax_gates(logits, 0.5), [1.0, 1.0, 1.0])
    np.testing.assert_array_equal(argmax_gates(logits, -0.5), [0.0, 0.0, 0.0])


def test_sampled_gates_are_exactly_binary_and_carry_the_softmax_gradient():
    logits = jnp.asarray(np.random.default_rng(0).normal(size=(64, 2)), jnp.float32)
    key = jax.random.key(1)
    gates = sample_gates(logits, key, 1.3)
    assert set(np.unique(gates)) == {0.0, 1.0}
    gradient = jax.grad(lambda x: sample_gates(x, key, 1.3).sum())(logits)
    uniform = jax.random.uniform(key, logits.shape)
    noise = -jnp.log(-jnp.log(uniform + 1e-8) + 1e-8)
    full = jax.nn.softmax((logits + noise) / 1.3, axis=-1)[:, 1]
    np.testing.assert_allclose(gradient[:, 1], full * (1 - full) / 1.3, rtol=1e-4)
    np.testing.assert_allclose(gradient[:, 0], -gradient[:, 1], rtol=1e-4)


def test_sampling_frequency_is_the_sigmoid_of_the_logit_difference():
    logits = jnp.broadcast_to(jnp.array([0.0, 1.0]), (20_000, 2))
    frequency = sample_gates(logits, jax.random.key(0), 1.0).mean()
    assert abs(float(frequency) - 1 / (1 + np.exp(-1.0))) < 0.015
