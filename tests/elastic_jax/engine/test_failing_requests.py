"""Random schedules of requests that fail, are cancelled or cannot be: the others answer as if alone."""

import dataclasses
import itertools
from collections import Counter

import numpy as np
import pytest
from tiny import tiny_model

from elastic_jax.engine import Engine, EngineConfig
from elastic_jax.engine.paged_slots import PagedSlots
from elastic_jax.errors import ConfigError, ElasticError
from elastic_jax.kv_cache import CacheConfig
from elastic_jax.sampling import Sampling

ENGINE = EngineConfig(slots=3, max_length=160, step_tokens=4, flush_rows=1)
PACKED = CacheConfig(bits=2, group=32, residual=8, outliers=2, outlier_store=6, untraced_layers=1)
PAGES = 30
"""Three rows of full heads need up to 48: some have to wait."""
POISON = 63
"""A prompt that begins with this token cannot be read: the device has no memory for it, say."""
SHARED = [7] * 45
"""The beginning of some prompts, kept as a prefix."""
QUESTIONS = [
    dict(
        prompt=np.random.default_rng(n).integers(0, POISON, n).tolist(),
        max_new_tokens=new,
        sampling=sampling,
        seed=n,
        routing=routing,
    )
    for n, new, sampling, routing in (
        (2, 9, Sampling(), None),
        (30, 14, Sampling(temperature=0.8, top_k=30, top_p=0.95), None),
        (39, 33, Sampling(), "full"),
        (64, 20, Sampling(temperature=1.5), "sparse"),
        (90, 40, Sampling(), None),
    )
]
QUESTIONS += [QUESTIONS[0] | {"beams": 2, "max_new_tokens": 12}, QUESTIONS[2] | {"stop_tokens": range(0, 64, 9)}]
NAMED_PREFIX = {"prompt": [*SHARED, 1, 2, 3, 4, 5], "max_new_tokens": 20, "sampling": Sampling()}
IMPOSSIBLE = [
    {"prompt": []},
    {"prompt": [64]},
    {"prompt": [1.5]},
    {"prompt": "12"},
    {"max_new_tokens": 3.5},
    {"max_new_tokens": 161},
    {"router_bias": float("nan")},
    {"draft": [1, 2]},
    {"beams": 4},
    {"stop_tokens": ["2"]},
    {"sampling": {"temperature": 1}},
]


class Service:
    """An engine that every schedule uses, and the answers of its questions alone."""

    def __init__(self, cache, pages):
        model, config = tiny_model(), ENGINE
        if pages:
            page = PagedSlots(model, ENGINE, cache).page_bytes
            config = dataclasses.replace(ENGINE, pool_mib=(pages + 0.5) * page / 2**20)
        self.engine, self.quiet = Engine(model, config, cache), Engine(model, config, cache)
        self.foreign = self.quiet.submit([1], max_new_tokens=1), self.quiet.cache_prefix(SHARED)
        self.prefix = self.engine.cache_prefix(SHARED)
        self.run(self.engine), self.run(self.quiet)
        self.answers = {}
        prefill = self.engine.slots.prefill

        def poisoned(prompt, *rest):
            if prompt[0] == POISON:
                raise MemoryError("no room for the prompt")
            return prefill(prompt, *rest)

        self.engine.slots.prefill = poisoned

    @staticmethod
    def run(engine):
        return list(engine.run())

    def alone(self, number):
        """The answer of question `number`, the last of which names the prefix."""
        if number not in self.answers:
            named = number == len(QUESTIONS)
            asked = NAMED_PREFIX | {"prefix": self.foreign[1]} if named else QUESTIONS[number]
            request = self.quiet.submit(**asked)
            self.run(self.quiet)
            self.answers[number] = request.tokens
        return self.answers[number]


def misbehave(service, rng, number, victim):
    """Options of a request that does something wrong at a random time, and how it is to end."""
    engine, wrong = service.engine, int(rng.integers(9))
    at = int(rng.integers(max(len(service.alone(number)) - 1, 1)))
    calls = itertools.count()

    def raising(*_):
        if next(calls) >= at:
            raise BrokenPipeError("client went away")
        return []

    def stepping(_):
        engine.step()

    def cancelling(tokens):
        engine.cancel(victim)
        return tokens[-1:]

    drafts = {
        0: raising,
        1: lambda tokens: [99999],
        2: lambda tokens: [1] * 9,
        3: lambda tokens: itertools.repeat(1),
        4: lambda tokens: [0.5],
        5: lambda tokens: None,
    }
    if wrong in drafts:
        return {"draft": drafts[wrong]}, "error"
    if wrong == 8:
        return ({"draft": cancelling}, "cancels") if victim else ({}, None)
    return {"on_event": raising if wrong == 6 else stepping}, "error"


def refuse_foreign(engine, request, prefix):
    for call in (
        lambda: engine.submit(**NAMED_PREFIX, prefix=prefix),
        lambda: engine.cancel(request),
        lambda: next(engine.stream(request)),
        lambda: engine.drop_prefix(prefix),
    ):
        with pytest.raises(ConfigError, match="of this engine"):
            call()


def serve(service, seed):
    """One schedule; counts of what happened."""
    rng, engine, happened = np.random.default_rng(seed), service.engine, Counter()
    running, ends = [], {}
    to_come = int(rng.integers(4, 9))
    while to_come or not engine.idle:
        if to_come and rng.random() < 0.4:
            to_come -= 1
            number = int(rng.integers(len(QUESTIONS) + 1))
            asked = NAMED_PREFIX | {"prefix": service.prefix} if number == len(QUESTIONS) else QUESTIONS[number]
            kind = rng.choice(
                ["good", "drafted", "wrong", "impossible", "foreign", "poisoned"], p=[0.4, 0.1, 0.25, 0.1, 0.05, 0.1]
            )
            end = None
            if kind == "impossible":
                with pytest.raises(ElasticError):
                    engine.submit(**asked | IMPOSSIBLE[rng.integers(len(IMPOSSIBLE))])
            elif kind == "foreign":
                refuse_foreign(engine, *service.foreign)
            elif kind == "poisoned":
                request, end = engine.submit([POISON, 1, 2], max_new_tokens=5), "error"
            else:
                plain, options = "beams" not in asked, {}
                if kind == "wrong" and plain:
                    victim = running[rng.integers(len(running))] if running else None
                    options, end = misbehave(service, rng, number, victim)
                    if end == "cancels":
                        end, ends[victim] = None, (ends[victim][0], "perhaps cancelled")
                elif kind == "drafted" and plain:
                    answer, start = service.alone(number), len(asked["prompt"])
                    options = {"draft": lambda tokens, a=answer, s=start: [*a[len(tokens) - s :][:2], 5]}
                request = engine.submit(**asked, **options)
            happened[kind] += 1
            if kind not in ("impossible", "foreign"):
                ends[request] = (number if kind != "poisoned" else None), end
                running.append(request)
        if running and rng.random() < 0.03:
            request = running[rng.integers(len(running))]
            if request.finish is None:
                engine.cancel(request)
                ends[request] = ends[request][0], "cancelled"
        engine.step()
    for request, (number, end) in ends.items():
        answer = [] if number is None else service.alone(number)
        happened[request.finish] += 1
        assert len(request.tokens) <= request.max_new_tokens
        if end is None:
            assert request.finish in ("stop", "length") and request.tokens == answer, (seed, number)
        else:
            assert request.finish == end or request.tokens == answer or "perhaps" in end, (seed, number, end)
            assert request.tokens == answer[: len(request.tokens)], (seed, number, end)
    assert not engine.slots.lengths.any() and engine._rows.free == ENGINE.slots
    return happened


def check_nothing_is_left(service):
    engine = service.engine
    engine.drop_prefix(service.prefix)
    if isinstance(engine.slots, PagedSlots):
        assert engine.slots.pool.free == engine.slots.pool.available == engine.slots.pool.size
    service.prefix = engine.cache_prefix(SHARED)
    service.run(engine)


@pytest.fixture(scope="module")
def services():
    return {"packed": Service(PACKED, PAGES), "plain": Service(CacheConfig(), None)}


def serve_many(service, seeds):
    totals = Counter()
    for i, seed in enumerate(seeds):
        totals.update(serve(service, seed))
        check_nothing_is_left(service)
        if i % 100 == 99:
            print(f"{i + 1} schedules, {dict(totals)}", flush=True)
    return totals


@pytest.mark.parametrize(("cache", "schedules"), [("packed", 24), ("plain", 8)])
def test_requests_that_fail_cost_the_others_nothing(services, cache, schedules):
    happened = serve_many(services[cache], range(schedules))
    assert {"good", "drafted", "wrong", "impossible", "foreign", "poisoned", "error", "length"} <= happened.keys()


@pytest.mark.slow
@pytest.mark.parametrize(("cache", "schedules"), [("packed", 1500), ("plain", 500)])
def test_two_thousand_schedules_of_requests_that_fail(services, cache, schedules):
    happened = serve_many(services[cache], range(1000, 1000 + schedules))
    assert min(happened[end] for end in ("error", "cancelled", "length", "stop")) > 0
