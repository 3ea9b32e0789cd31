"""Eager calls compile once: the second call with the same shapes, and other models and settings, reuse the programs."""

import contextlib
import dataclasses
from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import random_ids, tiny_model

from elastic_jax.generation import generate
from elastic_jax.kv_cache import CacheConfig
from elastic_jax.model import Extras
from elastic_jax.reward import ElasticRewardModel
from elastic_jax.sampling import Sampling
from pallas_kernels import dual_attention, hybrid_attention, routed_attention, select_blocks

COMPILED = "/jax/core/compile/backend_compile_duration"


@contextlib.contextmanager
def programs() -> Iterator[list[str]]:
    """The programs that were compiled meanwhile, read from the compile cache included."""
    found: list[str] = []

    def listen(event: str, duration: float, **rest: object) -> None:
        if event == COMPILED:
            found.append(str(rest))

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield found
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


def maps() -> int:
    return len(Path("/proc/self/maps").read_text(encoding="utf-8").splitlines())


def normal(*shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(0).standard_normal(shape), jnp.float32)


Q, K = normal(1, 64, 4, 16), normal(1, 64, 2, 16)
MODE, Z = jnp.array([[0, 1]]), jnp.array([[1.0, 0.0]])
SPARSE = {"local_blocks": 1, "block_size": 16}


def reward_model() -> ElasticRewardModel:
    decoder = tiny_model(tie_word_embeddings=True)
    return ElasticRewardModel(decoder, normal(decoder.config.hidden_size, 1), decoder.config)


CALLS = {
    "model": lambda: (tiny_model(), lambda model: model(random_ids((1, 48))).logits),
    "model, packed": lambda: (
        tiny_model(),
        lambda model: model(random_ids((1, 48)), segment_ids=jnp.repeat(jnp.array([[1, 2, 0]]), 16, 1)).logits,
    ),
    "reward model": lambda: (reward_model(), lambda model: model(random_ids((1, 48)), routing="full")),
    "hybrid": lambda: (None, lambda _: hybrid_attention(Q, K, K, MODE, **SPARSE)),
    "hybrid, gradient": lambda: (
        None,
        lambda _: jax.grad(lambda q: hybrid_attention(q, K, K, MODE, **SPARSE).sum())(Q),
    ),
    "hybrid, reference": lambda: (None, lambda _: hybrid_attention(Q, K, K, MODE, **SPARSE, impl="reference")),
    "dual": lambda: (None, lambda _: dual_attention(Q, K, K, **SPARSE)[0]),
    "routed": lambda: (None, lambda _: routed_attention(Q, K, K, Z, **SPARSE)),
    "select": lambda: (None, lambda _: select_blocks(Q, K, block_size=16)),
}


@pytest.mark.parametrize("name", CALLS)
def test_the_second_eager_call_compiles_and_keeps_nothing(name):
    made, call = CALLS[name]()
    first = call(made)
    call(made)
    with programs() as compiled:
        before = maps()
        again = [call(CALLS[name]()[0]) for _ in range(4)][-1]  # other models of the same configuration
    assert not compiled
    assert maps() - before < 50
    np.testing.assert_array_equal(again, first)


def test_other_sampling_lengths_and_stop_tokens_use_the_programs_that_are_there():
    model, ids = tiny_model(), random_ids((1, 20))
    generate(model, ids, max_new_tokens=5, stop_tokens=[3])
    other = tiny_model()
    other.source, other.extras = "elsewhere", Extras({"lambda": np.ones(2, np.float32)})
    with programs() as compiled:
        for sampling in (Sampling(0.7), Sampling(1.3, top_k=3), Sampling(1.0, top_p=0.5), Sampling()):
            out = generate(other, ids, max_new_tokens=9, sampling=sampling, stop_tokens=[3, 5, 7], seed=1)
            assert out.tokens.shape == (1, 9)
    assert not compiled


def test_a_model_keeps_its_own_end_tokens_and_source_beside_others_of_its_configuration():
    first, second = tiny_model(), tiny_model()
    for model, end in ((first, 1), (second, 2)):
        model.config = dataclasses.replace(model.config, hf_extra={"eos_token_id": end})
        model.source = str(end)
    for model in (first, second, first):
        generate(model, random_ids((1, 8)), max_new_tokens=1, cache=CacheConfig())
    assert [(model.config.hf_extra["eos_token_id"], model.source) for model in (first, second)] == [(1, "1"), (2, "2")]
