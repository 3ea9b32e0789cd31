"""Eager calls compile once: the second call with the same shapes, and other models and settings, reuse the programs."""

import contextlib
import dataclasses
from collections.abc import Iterator

import jax
import numpy as np
import pytest
from eager_calls import CALLS, maps
from programs import reports
from tiny import random_ids, tiny_model

from elastic_jax.generation import generate
from elastic_jax.kv_cache import CacheConfig
from elastic_jax.model import Extras
from elastic_jax.sampling import Sampling

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


@pytest.mark.parametrize("name", CALLS)
def test_the_second_eager_call_compiles_and_keeps_nothing(name):
    call = CALLS[name]()
    first = call()
    call()
    others = [CALLS[name]() for _ in range(4)]  # other models of the same configuration
    with programs() as compiled:
        before = maps()
        again = [other() for other in others][-1]
    assert not compiled
    assert maps() - before < 50
    jax.tree.map(np.testing.assert_array_equal, again, first)


@pytest.mark.slow
@pytest.mark.parametrize("devices", [1, 2], ids=["alone", "mesh"])
@pytest.mark.parametrize("name", CALLS)
def test_400_eager_calls_keep_nothing(name, devices):
    """The second call should take less than a twentieth of the first; times are printed and not asserted."""
    (grown,) = reports("eager_calls.py", name, 400, devices, devices=devices)
    print(f"\n{name}, {devices} devices: second / first call {grown['second'] / grown['first']:.2%}", grown)
    assert grown["maps"] < 50
    assert grown["megabytes"] < 20


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
