import functools
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from heads_run import MODEL, RandomSamples, tiny_heads_config
from tiny import tiny_model

from elastic_jax.model import to_params
from elastic_jax.routing import Gates
from train.heads.settings import HeadsDataConfig, HeadsOptimConfig
from train.heads.step import first_state, make_step, mean_kl, rows_of, scored_states


@pytest.fixture(scope="module")
def setting():
    model = tiny_model(**MODEL)
    return model, to_params(model), RandomSamples().batch(0, 1, 256)


WITHOUT_TARGET = replace(
    tiny_heads_config(),
    target_msr=None,
    optim=HeadsOptimConfig(steps=10, start=1.0, learning_rate=0.2, price=1e-4, binary=0.0),
)
make = functools.cache(make_step)


def stepped(setting, config, gates=None, steps=1, batch=None, price=None):
    model, frozen, first = setting
    state = first_state(model.config, config)
    if gates is not None:
        state = state._replace(gates=jnp.broadcast_to(jnp.asarray(gates, jnp.float32), state.gates.shape))
    if price is not None:
        state = state._replace(price=jnp.full_like(state.price, price))
    step = make(model.config, config)
    for _ in range(steps):
        state, metrics = step(state, frozen, batch or first)
    return state, jax.tree.map(np.asarray, metrics)


def test_open_gates_are_full_attention(setting):
    _, metrics = stepped(setting, tiny_heads_config())
    assert abs(metrics["kl"]) < 1e-5 and metrics["msr"] == 0 and metrics["open"] == 6


def test_the_kl_is_that_of_the_distributions(setting):
    model, _, batch = setting
    gates = np.zeros((3, 2), np.float32)
    used = batch.weights[0] > 0
    log_probs = [
        jax.nn.log_softmax(model(batch.input_ids, routing=routing).logits[0, batch.positions[0][used]])
        for routing in ("full", "sparse")
    ]
    full, sparse = (np.asarray(x, np.float64) for x in log_probs)
    want = (np.exp(full) * (full - sparse)).sum(-1).mean()
    _, metrics = stepped(setting, tiny_heads_config(), gates)
    assert metrics["kl"] == pytest.approx(want, rel=1e-4)


def test_gates_move_against_the_slope_of_loss_and_price(setting):
    model, _, batch = setting
    gates = np.full((3, 2), 0.5, np.float32)
    full = scored_states(model, batch, "full")

    def kl(z_LK):
        states = scored_states(model, batch, Gates(rows_of(z_LK, 1), mixed=True))
        return mean_kl(model, full, states, batch.weights)

    slope = np.asarray(jax.jit(jax.grad(kl))(jnp.asarray(gates))) + WITHOUT_TARGET.optim.price
    state, _ = stepped(setting, WITHOUT_TARGET, gates)
    moved = np.asarray(state.gates[0]) - gates
    assert (np.sign(moved) == -np.sign(slope)).all() and (np.abs(slope) > 1e-5).all()


def test_gates_stay_between_0_and_1_and_the_price_closes_them(setting):
    state, metrics = stepped(setting, tiny_heads_config(), steps=9, price=50.0)
    assert (np.asarray(state.gates) == 0).all() and metrics["open"] == 0
    assert (np.asarray(state.opened) < 9).all()


@pytest.mark.parametrize(("gates", "grows"), [(1.0, True), (0.01, False)])
def test_the_price_follows_the_target(setting, gates, grows):
    state, metrics = stepped(setting, tiny_heads_config(), np.full((3, 2), gates, np.float32))
    assert (float(state.price[0]) > metrics["price"]) == grows


def test_without_a_target_the_price_stays(setting):
    state, metrics = stepped(setting, WITHOUT_TARGET)
    assert float(state.price[0]) == pytest.approx(float(metrics["price"]))


def test_the_distance_of_hidden_states_is_another_loss(setting):
    gates = np.full((3, 2), 0.5, np.float32)
    by_kl, by_states = (
        stepped(setting, config, gates)[1] for config in (WITHOUT_TARGET, replace(WITHOUT_TARGET, loss="hidden"))
    )
    assert by_kl["kl"] == pytest.approx(float(by_states["kl"])) and by_kl["grad_norm"] != by_states["grad_norm"]


def test_gates_of_other_tasks_stay_as_they_are(setting):
    data = HeadsDataConfig(kinds=("needles", "prose", "code"), min_tokens=256, max_tokens=256)
    config = tiny_heads_config(per_task=True, data=data)
    batch = setting[2]._replace(group=np.int32(1))
    state, _ = stepped(setting, config, steps=3, batch=batch)
    assert (np.asarray(state.gates[1]) < 1).any()
    assert (np.asarray(state.gates[0]) == 1).all() and (np.asarray(state.gates[2]) == 1).all()
    assert not np.asarray(state.opened[0]).any() and float(state.price[0]) == pytest.approx(config.optim.price)


def test_rows_that_are_shorter_have_the_loss_of_their_own_tokens(setting):
    model, _, batch = setting
    changed = batch._replace(input_ids=np.pad(batch.input_ids, ((0, 0), (0, 16)), constant_values=7))
    gates = np.full((3, 2), 0.3, np.float32)
    want, got = (stepped(setting, WITHOUT_TARGET, gates, batch=each)[1]["kl"] for each in (batch, changed))
    assert got == pytest.approx(float(want), rel=1e-4)
