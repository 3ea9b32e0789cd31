"""Calibrated heads in the engine: prefixes and prompts in pieces need no routing of their own."""

import numpy as np
import pytest
from tiny import HEADS, tiny_model

from elastic_jax.engine import Engine, EngineConfig
from elastic_jax.generation import generate
from elastic_jax.kv_cache import CacheConfig

SIZE = EngineConfig(slots=2, max_length=160, step_tokens=4)


def engine(cache: CacheConfig | None = None) -> Engine:
    model = tiny_model()
    model.use_heads(HEADS)
    return Engine(model, SIZE, cache)


def ids(n: int, seed: int = 0) -> list[int]:
    return np.random.default_rng(seed).integers(0, 64, n).tolist()


def answer(engine: Engine, *request, **options) -> list[int]:
    asked = engine.submit(*request, max_new_tokens=8, stop_tokens=(), **options)
    for _ in engine.run():
        pass
    assert asked.error is None
    return asked.tokens


def test_a_kept_prefix_serves_every_prompt_that_begins_with_it():
    prompts = [[*ids(80), *ids(n, n)] for n in (5, 17)]
    apart, sharing = engine(), engine()
    sharing.cache_prefix(ids(80))
    for prompt in prompts:
        for routing in (None, "heads", HEADS):
            request = sharing.submit(prompt, max_new_tokens=8, stop_tokens=(), routing=routing)
            for _ in sharing.run():
                pass
            assert request.reused == 80
            assert request.tokens == answer(apart, prompt, routing=routing)
            np.testing.assert_array_equal(request.mode_LK, HEADS.modes())
    full = sharing.submit(prompts[0], max_new_tokens=8, routing="full")
    routed = sharing.submit(prompts[0], max_new_tokens=8, routing="routers")
    for _ in sharing.run():
        pass
    assert full.reused == routed.reused == 0, "their routing is another"


@pytest.mark.parametrize("bits", [16, 2])
def test_answers_are_those_of_generate(bits):
    cache = CacheConfig(bits=bits, group=32, residual=8)
    model = tiny_model()
    serving = engine(cache)
    for routing, imposed in ((None, HEADS), ("routers", None)):
        prompt = ids(70)
        out = generate(model, np.array([prompt]), max_new_tokens=8, cache=cache, routing=imposed, stop_tokens=())
        assert answer(serving, prompt, routing=routing) == out.tokens[0].tolist()


def test_a_named_prefix_brings_the_heads():
    serving = engine()
    prefix = serving.cache_prefix(ids(40))
    assert answer(serving, ids(40), prefix=prefix) == answer(engine(), ids(40))
    np.testing.assert_array_equal(prefix.mode_LK, HEADS.modes())


def test_nothing_is_compiled_for_routers_after_warming_up():
    serving = engine()
    serving.warm_up(64)
    answer(serving, ids(30), routing="routers")
