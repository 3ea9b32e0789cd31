from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
from tiny import CONFIG, tiny_model
from train_run import tiny_config

from elastic_jax.model import to_params
from elastic_jax.routing import Gates
from train.config import SparsityConfig, TaskConfig, TasksConfig, WarmStartConfig
from train.data.packing import Rows
from train.router.step import fresh_routers
from train.router.warm_start import Measured, by_sample, fit, fit_to_gates, make_logits, make_probes, mean_gates
from train.token_losses import token_nll

LENGTHS = (60, 40)


def packed_rows() -> Rows:
    """One row of 128 tokens with two samples and room for a third; only the last 5 labels of each count."""
    rng = np.random.default_rng(2)
    ids, labels = rng.integers(0, CONFIG.vocab_size, (2, 1, 128)).astype(np.int32)
    segments, weights = np.zeros((1, 128), np.int32), np.zeros((1, 128), np.float32)
    for number, (start, length) in enumerate(zip((0, 64), LENGTHS, strict=True), 1):
        segments[0, start : start + length] = number
        weights[0, start + length - 5 : start + length] = 0.2
    return Rows(ids, segments, labels, weights, np.array([[*LENGTHS, 0]]), np.array([[3, 0, -1]]))


def test_slopes_are_the_mean_derivative_of_the_loss_over_the_levels():
    model, rows, levels = tiny_model(), packed_rows(), (0.8, 0.3)
    probes = make_probes(CONFIG, levels=levels, max_segments=3)
    end = jnp.zeros((5, 2, 2)).at[3, 0, 1].set(0.5)
    pooled, slope = probes.worth(to_params(model), end, rows)

    @jax.jit
    def loss(z):
        out = model.hidden(rows.input_ids, segment_ids=rows.segment_ids, num_segments=3, gates=Gates(z, mixed=True))
        nll = token_nll(out.hidden_BTD, model.head_kernel(), rows.labels, rows.weights > 0)
        return (rows.weights * nll).sum()

    at = (1, 0, 0, 1)
    differences = []
    for level in levels:
        z = jnp.full(slope.shape, level).at[0, 0, 0, 1].set(level + 0.5 * (1 - level))
        differences.append((loss(z.at[at].add(0.05)) - loss(z.at[at].add(-0.05))) / 0.1)
    np.testing.assert_allclose(slope[at], np.mean(differences), rtol=0.05)
    assert abs(float(slope[at])) > 1e-5
    half_way = (0, 0, 0, 1)
    differences = []
    for level in levels:
        z = jnp.full(slope.shape, level).at[half_way].set(level + 0.5 * (1 - level))
        differences.append((loss(z.at[half_way].add(0.05)) - loss(z.at[half_way].add(-0.05))) / 0.1)
    np.testing.assert_allclose(slope[half_way], 0.5 * np.mean(differences), rtol=0.05)
    keys, none = probes.keys(to_params(model), end, rows)
    np.testing.assert_allclose(keys, pooled, atol=1e-5)
    assert not none.any()


def test_samples_come_out_of_packed_rows_in_order_and_padding_does_not():
    pooled, slope = np.random.default_rng(0).normal(size=(2, 1, 3, 2, 8)), np.ones((2, 1, 3, 2))
    measured = by_sample(packed_rows(), jnp.asarray(pooled), jnp.asarray(slope), round_index=1)
    assert measured.round_X.tolist() == [1, 1] and measured.task_X.tolist() == [3, 0]
    np.testing.assert_allclose(measured.pooled_XLKH[1], pooled[:, 0, 1], rtol=1e-6)
    assert measured.slope_XLK.shape == (2, 2, 2)


def test_fitted_routers_keep_the_heads_that_a_task_needs():
    """Questions need head (0, 1) and code none; the two are told apart by their keys alone."""
    rng = np.random.default_rng(1)
    task = np.tile([0, 3], 40)
    pooled = rng.normal(size=(80, 2, 2, 8)).astype(np.float32)
    pooled[:, :, 1] += 2.0
    pooled[:, :, :, 0] += 5.0 * (task[:, None, None] == 0)
    slope = np.zeros((80, 2, 2), np.float32)
    slope[:20:2, 0, 1] = -1.0
    rounds = np.where(np.arange(80) < 20, 0, -1)
    tasks = TasksConfig(
        single_qa=TaskConfig(target=(0.7, 0.8)), code=TaskConfig(target=(0.95, 1.0)), icl=TaskConfig(count=0)
    )
    config = replace(
        tiny_config(),
        tasks=tasks,
        sparsity=SparsityConfig(penalty=20.0),
        warm_start=WarmStartConfig(rows=(1,), steps=150, learning_rate=5e-3),
    )
    router = fresh_routers(CONFIG, replace(config.gates, first_weights="scaled"), seed=0)
    losses = []
    fitted = fit(
        router, Measured(pooled, slope, task, rounds), CONFIG, config, on_step=lambda done, loss: losses.append(loss)
    )
    unseen = rng.normal(size=(40, 2, 2, 8)).astype(np.float32)
    unseen[:, :, 1] += 2.0
    unseen[:20, :, :, 0] += 5.0
    logits = make_logits(CONFIG)(fitted, jnp.asarray(unseen))
    gates = mean_gates(fitted, Measured(pooled, slope, task, rounds), CONFIG)
    assert gates[0, 0, 1] > 0.8 and gates[3].max() < 0.3 and not gates[1].any()
    full = np.asarray(logits[..., 1] > logits[..., 0])
    assert len(losses) == 150 and losses[-1] < losses[0]
    assert full[0, :20, 1].mean() > 0.9
    assert full[:, 20:].mean() < 0.05


def test_routers_fitted_to_gates_decide_so_for_the_prompts_of_each_task():
    """Questions keep heads (0, 1) and (1, 0), code keeps none; the two are told apart by their keys alone."""
    rng = np.random.default_rng(1)

    def keys(task_X):
        pooled = rng.normal(size=(len(task_X), 2, 2, 8)).astype(np.float32)
        pooled[:, :, 1] += 2.0
        pooled[:, :, :, 0] += 5.0 * (task_X[:, None, None] == 0)
        return pooled

    task = np.tile([0, 3], 40)
    wanted = np.zeros((5, 2, 2), np.float32)
    wanted[0, 0, 1] = wanted[0, 1, 0] = 1.0
    config = replace(tiny_config(), warm_start=WarmStartConfig(steps=150, learning_rate=5e-3))
    router = fresh_routers(CONFIG, replace(config.gates, first_weights="scaled"), seed=0)
    measured = Measured(keys(task), np.zeros((80, 2, 2), np.float32), task, np.full(80, -1))
    losses = []
    fitted = fit_to_gates(router, measured, wanted, CONFIG, config, on_step=lambda done, loss: losses.append(loss))
    logits = make_logits(CONFIG)(fitted, jnp.asarray(keys(np.repeat([0, 3], 20))))
    full_LXK = np.asarray(logits[..., 1] > logits[..., 0])
    assert len(losses) == 150 and losses[-1] < 0.5 * losses[0]
    assert (full_LXK[:, :20] == (wanted[0] > 0)[:, None]).mean() > 0.9
    assert full_LXK[:, 20:].mean() < 0.05


def test_stacked_logits_are_those_of_the_model():
    model, rows = tiny_model(), packed_rows()
    out = model.hidden(rows.input_ids, segment_ids=rows.segment_ids, num_segments=3, gates="full")
    router = {path: array for path, array in to_params(model).items() if path.startswith("layers.router.")}
    pooled_XLKH = jnp.moveaxis(out.pooled[:, 0], 0, 1)
    np.testing.assert_allclose(make_logits(CONFIG)(router, pooled_XLKH), out.logits[:, 0], atol=1e-5)
