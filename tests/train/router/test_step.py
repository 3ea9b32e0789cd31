from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import tiny_model
from train_run import tiny_config, tiny_samples

from train.config import GateConfig, LossConfig, OptimConfig, SparsityConfig
from train.data.dataset import row_shape
from train.data.packing import Rows
from train.data.pipeline import make_pipeline
from train.router.step import first_state, fresh_routers, make_step, split_params


@pytest.fixture(scope="module")
def setting():
    model = tiny_model()
    router, frozen = split_params(model)
    return model.config, router, frozen


def batch_of(config, index=0):
    stream = iter(
        make_pipeline(
            tiny_samples(),
            row_shape(config),
            rows=config.optim.rows,
            accumulate=config.optim.accumulate,
            seed=0,
        )
    )
    return [next(stream) for _ in range(index + 1)][index]


def copied(tree):
    return jax.tree.map(jnp.array, tree)


def stepped(setting, config, rows, router=None):
    model_config, fresh, frozen = setting
    state = first_state(copied(router or fresh), config)
    return make_step(model_config, config)(state, frozen, rows)


def test_a_step_moves_every_router_tensor_and_leaves_the_backbone(setting):
    _, router, frozen = setting
    before = copied(frozen)
    config = tiny_config(optim=OptimConfig(accumulate=2, warmup=0.0))
    state, metrics = stepped(setting, config, batch_of(config))
    for path, value in router.items():
        assert not np.array_equal(state.trainable.router[path], value), path
    for path, value in frozen.items():
        assert np.array_equal(value, before[path]), path
    assert set(state.trainable.router) == set(router) and not set(router) & set(frozen)
    assert np.isfinite(metrics["loss"]) and metrics["grad_norm"] > 0


def test_the_backbone_gets_no_gradient_computation(setting):
    """No product of the step has the shape of a backbone matrix."""
    model_config, router, frozen = setting
    config = tiny_config()
    jaxpr = str(
        jax.make_jaxpr(make_step(model_config, config))(first_state(copied(router), config), frozen, batch_of(config))
    )
    D, F = model_config.hidden_size, model_config.intermediate_size
    dots = [line for line in jaxpr.splitlines() if "dot_general[" in line or "= dot_general" in line]
    assert dots
    assert not [line for line in dots if f"[{D},{F}] =" in line or f"[{F},{D}] =" in line]


def test_accumulated_gradients_are_the_mean_of_the_micro_batches(setting):
    """The norm of the averaged gradient of two equal draws is that of one: sums would double it."""
    config = tiny_config(optim=OptimConfig(accumulate=2), gates=GateConfig(start=1e-3, end=1e-3))
    rows = batch_of(config)
    twice = Rows(*(np.stack([field[0], field[0]]) for field in rows))
    once = Rows(*(field[:1] for field in rows))
    certain = setting[1] | {"layers.router.head.fc3.bias": jnp.full((2, 2), 0.0).at[:, 1].set(40.0)}
    metrics = [stepped(setting, config, batch, certain)[1] for batch in (once, twice)]
    for name in ("loss", "lm_loss", "sparsity_loss", "msr"):
        np.testing.assert_allclose(metrics[0][name], metrics[1][name], rtol=1e-5)


def test_language_model_loss_is_the_weighted_mean_over_the_whole_batch(setting):
    """With every head full the loss equals one computed sample by sample from whole logits."""
    config = tiny_config(gates=GateConfig(initial_bias=60.0))
    rows = batch_of(config)
    router = fresh_routers(setting[0], GateConfig(initial_bias=60.0), seed=0)
    _, metrics = stepped(setting, config, rows, router)
    model = tiny_model()
    total, count = 0.0, 0
    T, M = rows.input_ids.shape[-1], rows.task_ids.shape[-1]
    for ids, segments, weights in zip(
        rows.input_ids.reshape(-1, T), rows.segment_ids.reshape(-1, T), rows.weights.reshape(-1, T), strict=True
    ):
        for number in range(1, segments.max() + 1):
            own = segments == number
            logits = model(jnp.asarray(ids[own])[None], routing="full").logits[0]
            nll = -jax.nn.log_softmax(logits[:-1])[jnp.arange(own.sum() - 1), ids[own][1:]]
            total += float((weights[own][:-1] * nll).sum())
            count += 1
    assert count == (rows.task_ids.reshape(-1, M) >= 0).sum()
    np.testing.assert_allclose(metrics["lm_loss"], total / count, rtol=1e-4)
    np.testing.assert_allclose(np.nan_to_num(metrics["msr"]), 0.0, atol=1e-6)


def test_initial_bias_sets_the_first_share_of_full_heads(setting):
    config = tiny_config(gates=GateConfig(initial_bias=30.0))
    _, metrics = stepped(
        setting, config, batch_of(config), fresh_routers(setting[0], GateConfig(initial_bias=30.0), seed=0)
    )
    assert np.nanmax(metrics["msr"]) == 0.0 and np.nanmax(metrics["msr_argmax"]) == 0.0


def test_scaled_routers_start_at_the_same_logit_for_every_head_and_see_the_prompt(setting):
    config = tiny_config()
    router = fresh_routers(setting[0], GateConfig(first_weights="scaled", initial_bias=1.5), seed=0)
    _, metrics = stepped(setting, config, batch_of(config), router)
    present = np.asarray(metrics["msr_argmax"])[np.asarray(metrics["nll"]) > 0]
    assert (present == 0).all()
    assert not router["layers.router.head.fc3.kernel"].any()
    kernel = router["layers.router.task.fc1.kernel"]
    assert float(kernel.std()) == pytest.approx(kernel.shape[1] ** -0.5, rel=0.1)


def test_noise_changes_with_the_step_but_not_between_runs(setting):
    config = tiny_config()
    rows = batch_of(config)
    step = make_step(setting[0], config)

    def msr(number):
        state = first_state(copied(setting[1]), config)._replace(step=jnp.int32(number))
        return np.asarray(step(state, setting[2], rows)[1]["msr"])

    np.testing.assert_array_equal(msr(0), msr(0))
    assert not np.array_equal(msr(0), msr(1))


@pytest.mark.parametrize("loss", ["interval", "official"])
def test_strong_multipliers_bring_the_share_into_the_target(setting, loss):
    config = tiny_config(optim=OptimConfig(steps=80, learning_rate=3e-2, lambda_learning_rate=0.5, warmup=0.0))
    config = replace(config, sparsity=SparsityConfig(loss=loss, dual_learning_rate=2.0, penalty=10.0))
    target = replace(config.tasks.code, target=(0.9, 1.0))
    config = replace(config, tasks=replace(config.tasks, **{n: target for n in vars(config.tasks)}))
    step, rows = make_step(setting[0], config), batch_of(config)
    state = first_state(fresh_routers(setting[0], GateConfig(initial_bias=2.0), seed=0), config)
    shares = []
    for _ in range(40):
        state, metrics = step(state, setting[2], rows)
        shares.append(np.nanmean(metrics["msr"]))
    assert np.mean(shares[:3]) < 0.5 and np.mean(shares[-10:]) > 0.7


def test_draws_average_over_independent_noise(setting):
    config = tiny_config(gates=GateConfig(draws=3))
    rows = batch_of(config)
    _, metrics = stepped(setting, config, rows)
    assert metrics["tokens"] == 3 * (rows.segment_ids > 0).sum()
    assert np.isfinite(metrics["loss"])


def test_distillation_learns_from_full_attention_alone(setting):
    rows = batch_of(tiny_config())
    results = {
        kind: stepped(setting, tiny_config(loss=LossConfig(kind=kind)), rows)[1] for kind in ("task", "distil", "both")
    }
    sparsity = float(results["task"]["sparsity_loss"])
    assert "distil_loss" not in results["task"]  # records of runs by the task alone stay what they were
    for kind, parts in {"distil": ("distil_loss",), "both": ("lm_loss", "distil_loss")}.items():
        wanted = sum(float(results[kind][part]) for part in parts) + sparsity
        assert float(results[kind]["loss"]) == pytest.approx(wanted, rel=1e-5)
    norms = [float(values["grad_norm"]) for values in results.values()]
    assert len({round(norm, 6) for norm in norms}) == 3
