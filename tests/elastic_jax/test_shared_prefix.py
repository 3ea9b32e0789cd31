"""Continuations over a shared prompt equal the same sequences run one by one, in values and gradients."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from tiny import CONFIG, random_ids, tiny_model

from elastic_jax.config import RopeConfig
from elastic_jax.errors import ConfigError
from elastic_jax.model import ElasticForCausalLM, from_params, to_params
from elastic_jax.shared_prefix import shared_prefix_hidden

PROMPTS = random_ids((3, 80))
PROMPT_LENGTHS = jnp.array([80, 37, 1])
"""A whole number of blocks, a part of one, and a single token."""
RESPONSES = random_ids((3, 2, 9), seed=1)
RESPONSE_LENGTHS = jnp.array([[9, 4], [1, 9], [7, 2]])


def joined() -> tuple[jax.Array, np.ndarray]:
    """Every prompt with every response as a row of its own, and the rows' lengths."""
    rows, lengths = np.zeros((6, 96), np.int32), []
    for index in range(6):
        b, v = divmod(index, 2)
        ids = [*PROMPTS[b, : PROMPT_LENGTHS[b]].tolist(), *RESPONSES[b, v, : RESPONSE_LENGTHS[b, v]].tolist()]
        rows[index, : len(ids)] = ids
        lengths.append(len(ids))
    return jnp.asarray(rows), np.array(lengths)


def shared(model: ElasticForCausalLM, routing) -> list[jax.Array]:
    """Hidden states of the prompt's last token and of the response, one array for each pair."""
    out = shared_prefix_hidden(model, PROMPTS, PROMPT_LENGTHS, RESPONSES, RESPONSE_LENGTHS, routing=routing)
    counts = RESPONSE_LENGTHS.reshape(-1).tolist()
    return [hidden[: n + 1] for hidden, n in zip(out.hidden.reshape(6, 10, -1), counts, strict=True)]


def alone(model: ElasticForCausalLM, routing) -> list[jax.Array]:
    """The same from separate rows, whose routers see the prompt only."""
    rows, lengths = joined()
    prompts = jnp.repeat(PROMPT_LENGTHS, 2)
    imposed = routing if routing is None or isinstance(routing, str) else jnp.repeat(routing, 2, axis=1)
    out = model.hidden(rows, lengths=jnp.asarray(lengths), prompt_lengths=prompts, gates=imposed).hidden_BTD
    return [out[i, int(prompts[i]) - 1 : int(lengths[i])] for i in range(6)]


MIXED = jnp.asarray(np.random.default_rng(5).integers(0, 2, (2, 3, 2)), jnp.int8)


@pytest.mark.parametrize("routing", [None, "full", "sparse", MIXED], ids=["routers", "full", "sparse", "mixed"])
def test_hidden_states_equal_separate_rows(routing) -> None:
    model = tiny_model()
    for got, want in zip(shared(model, routing), alone(model, routing), strict=True):
        np.testing.assert_allclose(got, want, atol=2e-5)


def test_routing_equals_that_of_the_prompts() -> None:
    model = tiny_model()
    out = shared_prefix_hidden(model, PROMPTS, PROMPT_LENGTHS, RESPONSES, RESPONSE_LENGTHS)
    prompt_only = model.hidden(PROMPTS, lengths=PROMPT_LENGTHS)
    np.testing.assert_array_equal(out.routing.mode, prompt_only.routing.mode)
    assert 0 < float(out.routing.mode.mean()) < 1


@pytest.mark.parametrize("remat", [False, True])
def test_gradients_equal_separate_rows(remat: bool) -> None:
    model = tiny_model()
    weight = jnp.asarray(np.random.default_rng(7).standard_normal(CONFIG.hidden_size), jnp.float32)

    def loss(params, run) -> jax.Array:
        return sum(((hidden @ weight) ** 2).sum() for hidden in run(from_params(CONFIG, params)))

    def with_remat(model: ElasticForCausalLM) -> list[jax.Array]:
        out = shared_prefix_hidden(
            model, PROMPTS, PROMPT_LENGTHS, RESPONSES, RESPONSE_LENGTHS, routing=MIXED, remat=remat
        )
        keep = jnp.arange(10) <= RESPONSE_LENGTHS[..., None]
        return [jnp.where(keep[..., None], out.hidden, 0.0)]

    params = to_params(model)
    got = jax.jit(jax.grad(lambda p: loss(p, with_remat)))(params)
    want = jax.jit(jax.grad(lambda p: loss(p, lambda m: alone(m, MIXED))))(params)
    for path, slope in want.items():
        scale = float(jnp.abs(slope).max()) + 1e-6
        np.testing.assert_allclose(got[path] / scale, slope / scale, atol=2e-5, err_msg=path)


def test_what_cannot_be_shared_is_refused() -> None:
    def run(prompts=PROMPTS, **changes) -> None:
        model = nnx.eval_shape(lambda: tiny_model(**changes))
        shared_prefix_hidden(model, prompts, PROMPT_LENGTHS, RESPONSES, RESPONSE_LENGTHS)

    with pytest.raises(ConfigError, match="multiple of 16"):
        run(PROMPTS[:, :70])
    with pytest.raises(ConfigError, match="fa-xa"):
        run(router=dataclasses.replace(CONFIG.router, pattern="fa-xa"))
    with pytest.raises(ConfigError, match="dynamic"):
        run(rope=RopeConfig(type="dynamic", factor=2.0))
