"""Continuations over a shared prompt equal the same sequences run one by one, in values and gradients."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import CONFIG, random_ids, tiny_model

from elastic_jax.config import RopeConfig
from elastic_jax.errors import ConfigError
from elastic_jax.model import from_params, to_params
from elastic_jax.shared_prefix import separate_rows_hidden, shared_prefix_hidden

PROMPTS = np.asarray(random_ids((3, 48)))
PROMPT_LENGTHS = np.array([48, 37, 1])
"""A whole number of blocks, a part of one, and a single token."""
RESPONSES = np.asarray(random_ids((3, 2, 9), seed=1))
RESPONSE_LENGTHS = np.array([[9, 4], [1, 9], [7, 2]])
MIXED = np.random.default_rng(5).integers(0, 2, (2, 3, 2)).astype(np.int8)
PARAMS = to_params(tiny_model())


def shared(params, modes, *, run=shared_prefix_hidden, remat=False):
    """Hidden states `[6, 10, D]` of every prompt's last token and the response after it; zeros behind it."""
    batch = map(jnp.asarray, (PROMPTS, PROMPT_LENGTHS, RESPONSES, RESPONSE_LENGTHS))
    out = run(from_params(CONFIG, params), *batch, routing=modes, remat=remat)
    there = np.arange(10) <= RESPONSE_LENGTHS.reshape(6, 1)
    return jnp.where(there[..., None], out.hidden.reshape(6, 10, -1), 0.0), out.routing


def alone(params, modes):
    """The same from separate rows, whose routers see the prompt only."""
    rows, lengths = np.zeros((6, 64), np.int32), np.repeat(PROMPT_LENGTHS, 2) + RESPONSE_LENGTHS.reshape(6)
    for index, (b, v) in enumerate(np.ndindex(3, 2)):
        prompt, response = PROMPTS[b, : PROMPT_LENGTHS[b]], RESPONSES[b, v, : RESPONSE_LENGTHS[b, v]]
        rows[index, : lengths[index]] = np.concatenate([prompt, response])
    modes = None if modes is None else jnp.repeat(modes, 2, axis=1)
    prompts = np.repeat(PROMPT_LENGTHS, 2)
    rows, lengths = map(jnp.asarray, (rows, lengths))
    model = from_params(CONFIG, params)
    out = model.hidden(rows, lengths=lengths, prompt_lengths=prompts, gates=modes)
    wanted = np.minimum(prompts[:, None] - 1 + np.arange(10), 63)
    there = np.arange(10) <= RESPONSE_LENGTHS.reshape(6, 1)
    hidden = jnp.take_along_axis(out.hidden_BTD, wanted[..., None], axis=1)
    return jnp.where(there[..., None], hidden, 0.0), out.routing


@pytest.fixture(scope="module")
def both():
    return jax.jit(shared), jax.jit(alone)


@pytest.mark.parametrize("modes", [None, MIXED], ids=["routers", "mixed"])
def test_hidden_states_equal_separate_rows(both, modes) -> None:
    (got, routing), (want, of_rows) = (run(PARAMS, modes) for run in both)
    np.testing.assert_allclose(got, want, atol=2e-5)
    np.testing.assert_array_equal(routing.mode, of_rows.mode[:, ::2])
    if modes is None:
        assert 0 < float(routing.mode.mean()) < 1


def test_separate_rows_give_the_same(both) -> None:
    got, routing = jax.jit(partial(shared, run=separate_rows_hidden))(PARAMS, None)
    want, routing_of_shared = both[0](PARAMS, None)
    np.testing.assert_allclose(got, want, atol=2e-5)
    np.testing.assert_array_equal(routing.mode, routing_of_shared.mode)


def test_gradients_equal_separate_rows() -> None:
    """Recomputed layers: without recomputation the program is one part of this one."""
    weight = np.random.default_rng(7).standard_normal(CONFIG.hidden_size).astype(np.float32)
    got = jax.jit(jax.grad(lambda p: ((shared(p, MIXED, remat=True)[0] @ weight) ** 2).sum()))(PARAMS)
    want = jax.jit(jax.grad(lambda p: ((alone(p, MIXED)[0] @ weight) ** 2).sum()))(PARAMS)
    for path, slope in want.items():
        scale = float(jnp.abs(slope).max()) + 1e-6
        np.testing.assert_allclose(got[path] / scale, slope / scale, atol=2e-5, err_msg=path)


def test_what_cannot_be_shared_is_refused() -> None:
    def run(prompts=PROMPTS, **changes) -> None:
        model = tiny_model(**changes)
        shared_prefix_hidden(model, *map(jnp.asarray, (prompts, PROMPT_LENGTHS, RESPONSES, RESPONSE_LENGTHS)))

    with pytest.raises(ConfigError, match="multiple of 16"):
        run(PROMPTS[:, :40])
    with pytest.raises(ConfigError, match="fa-xa"):
        run(router=dataclasses.replace(CONFIG.router, pattern="fa-xa"))
    with pytest.raises(ConfigError, match="dynamic"):
        run(rope=RopeConfig(type="dynamic", factor=2.0))


def test_layers_without_rope_and_queries_scaled_by_position() -> None:
    rope = RopeConfig(type="yarn", factor=2.0, original_max_position=16, query_scaling=0.5)
    model = from_params(dataclasses.replace(CONFIG, rope_layers=(True, False), rope=rope), PARAMS)
    batch = [jnp.asarray(x) for x in (PROMPTS, PROMPT_LENGTHS, RESPONSES, RESPONSE_LENGTHS)]
    got, want = (run(model, *batch, routing="full").hidden for run in (shared_prefix_hidden, separate_rows_hidden))
    there = (np.arange(10) <= RESPONSE_LENGTHS[..., None])[..., None]
    np.testing.assert_allclose(np.where(there, got, 0.0), np.where(there, want, 0.0), atol=2e-5)
