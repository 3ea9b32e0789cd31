"""The engine: answers that do not depend on the others, fair waiting, prefixes, drafts, beams, nothing copied."""

import dataclasses
from functools import cache as cached
from importlib import import_module

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import tiny_model

from elastic_jax.engine import Engine, EngineConfig, programs
from elastic_jax.errors import ConfigError, ShapeError
from elastic_jax.generation import generate
from elastic_jax.kv_cache import CacheConfig
from elastic_jax.sampling import RowSampling, Sampling

SIZE = EngineConfig(slots=3, max_length=160, step_tokens=4, flush_rows=1)
PLAIN = CacheConfig()
PACKED = CacheConfig(bits=2, group=32, residual=8, outliers=2, outlier_store=6, untraced_layers=1)
SAMPLED = Sampling(temperature=0.8, top_k=30, top_p=0.95)
both_caches = pytest.mark.parametrize("cache", [PLAIN, PACKED], ids=["plain", "packed"])


@cached
def model():
    return tiny_model()


def engine(cache=PACKED, **changes):
    """With 20 pages instead of the 48 that three rows of full heads need; such a row takes 4 for every 32 tokens."""
    if cache is PACKED:
        changes = {"pool_mib": 20.5 * page_bytes() / 2**20} | changes
    return Engine(model(), dataclasses.replace(SIZE, **changes), cache)


@cached
def page_bytes():
    return Engine(model(), SIZE, PACKED).slots.page_bytes


def ids(n, seed=0):
    return np.random.default_rng(seed).integers(0, 64, n).tolist()


def finish(engine, *requests):
    for _ in engine.run():
        pass
    assert all(request.finish for request in requests)
    return [request.tokens for request in requests]


def assert_empty(engine):
    assert engine.idle and not engine.slots.lengths.any()
    if engine.cache.bits < 16:
        assert engine.slots.pool.available == engine.slots.pool.size


@both_caches
def test_an_answer_does_not_depend_on_what_runs_beside_it(cache):
    asked = [
        dict(prompt=ids(n, n), max_new_tokens=new, sampling=sampling, seed=n, routing=routing)
        for n, new, sampling, routing in (
            (100, 40, Sampling(), None),
            (61, 25, SAMPLED, None),
            (3, 50, Sampling(), "sparse"),
            (77, 7, SAMPLED, "full"),
            (39, 45, SAMPLED, None),
        )
    ]
    crowd = engine(cache)
    requests = []
    for question in asked:
        requests.append(crowd.submit(**question))
        crowd.step()
    answers = finish(crowd, *requests)
    assert [len(answer) for answer in answers] == [40, 25, 50, 7, 45]
    assert_empty(crowd)
    for question, answer in zip(asked, answers, strict=True):
        alone = engine(cache)
        assert finish(alone, alone.submit(**question)) == [answer]


@both_caches
def test_answers_are_those_of_generate(cache):
    prompt = ids(61)
    serving = engine(cache)
    requests = [serving.submit(prompt, max_new_tokens=30, sampling=SAMPLED, seed=seed) for seed in (1, 2)]
    answers = finish(serving, *requests)
    for request, answer, seed in zip(requests, answers, (1, 2), strict=True):
        wanted = generate(model(), jnp.asarray([prompt]), max_new_tokens=30, cache=cache, sampling=SAMPLED, seed=seed)
        assert answer == wanted.tokens[0].tolist()
        np.testing.assert_array_equal(request.mode_LK, wanted.routing.mode[:, 0])


def test_nothing_is_compiled_after_warming_up():
    compiled = []

    def listen(name, seconds, **_):
        if "jaxpr_trace" in name or "backend_compile" in name:
            compiled.append(name)

    serving = engine()
    serving.warm_up(100)
    assert_empty(serving)
    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        prefix = serving.cache_prefix(ids(50))
        for n, routing in ((3, None), (100, "sparse"), (64, None), (40, "full"), (90, None)):
            options = dict(sampling=SAMPLED, draft=lambda tokens: tokens[-2:]) if n % 2 else {}
            serving.submit(ids(n, n), max_new_tokens=30, routing=routing, **options)
        serving.submit([*ids(50), *ids(20, 1)], max_new_tokens=40, prefix=prefix)
        finish(serving)
        assert compiled == []
        jax.jit(lambda x: x + len(compiled))(1.0)
        assert compiled, "the listener hears nothing"
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


@both_caches
def test_the_cache_is_given_to_every_step_and_not_copied(cache):
    serving = engine(cache)
    serving.submit(ids(39), max_new_tokens=20)
    for _ in range(8):
        before = serving.slots.state
        serving.step()
        arrays = [x for x in jax.tree.leaves(before) if isinstance(x, jax.Array)]
        assert all(x.is_deleted() for x in arrays if x.nbytes > 64)


def step_memory(cache, max_length):
    slots = engine(cache, max_length=max_length, pool_mib=None).slots
    draw = RowSampling.stack([RowSampling()] * SIZE.slots)
    tokens, counts = np.zeros((SIZE.slots, 1), np.int32), np.zeros(SIZE.slots, np.int32)
    compiled = programs.read.lower(slots._graph, slots._params, slots._counted(), tokens, counts, draw).compile()
    return slots.nbytes, compiled.memory_analysis()


def test_a_step_works_in_the_memory_of_the_cache(monkeypatch):
    """All of the cache is aliased, and room for more pages takes little working memory."""
    monkeypatch.setattr(import_module("pallas_kernels.decode_attention.xla"), "CODES_AT_ONCE", 512)
    small, of_small = step_memory(PACKED, 176)
    large, of_large = step_memory(PACKED, 512)
    assert of_small.alias_size_in_bytes >= small and of_large.alias_size_in_bytes >= large > 1.5 * small
    assert of_large.temp_size_in_bytes - of_small.temp_size_in_bytes <= 0.1 * (large - small)


def test_events_stop_tokens_and_cancellation():
    serving, heard = engine(PLAIN), []
    free = finish(serving, serving.submit(ids(50), max_new_tokens=20))[0]
    stop = free[7]
    first = serving.submit(ids(50), max_new_tokens=20, stop_tokens=[stop], on_event=heard.append)
    others = [serving.submit(ids(30, seed), max_new_tokens=100) for seed in range(5)]
    events = list(serving.stream(first))
    assert [event.token for event in events[:-1]] == free[: free.index(stop) + 1] == first.tokens
    assert events[-1].finish == first.finish == "stop" and heard == events
    running, waiting = others[0], others[-1]
    assert running.tokens and running.finish is None and not waiting.tokens
    for request in (running, waiting, waiting):
        serving.cancel(request)
    assert running.finish == waiting.finish == "cancelled" and not waiting.tokens
    assert all(len(tokens) == 100 for tokens in finish(serving, *others)[1:-1])
    assert_empty(serving)


def test_a_caller_may_cancel_from_the_callback():
    serving = engine(PLAIN)
    request = serving.submit(
        ids(20), max_new_tokens=50, on_event=lambda event: len(request.tokens) == 3 and serving.cancel(request)
    )
    assert len(finish(serving, request)[0]) == 3 and request.finish == "cancelled"
    assert_empty(serving)


def test_a_request_that_waits_for_pages_is_not_overtaken():
    """Two large requests fill the pool one after the other; the small one that came last starts last."""
    serving = engine()
    order = []

    def note(event):
        if event.request not in order:
            order.append(event.request)

    large = [serving.submit(ids(90, seed), max_new_tokens=40, routing="full", on_event=note) for seed in (0, 1)]
    small = serving.submit(ids(5), max_new_tokens=5, routing="full", on_event=note)
    serving.step()
    assert large[0].tokens and not large[1].tokens and not small.tokens
    finish(serving, *large, small)
    assert order == [*large, small]
    assert_empty(serving)


@both_caches
@pytest.mark.parametrize("sampling", [Sampling(), SAMPLED], ids=["greedy", "sampled"])
def test_drafts_change_the_number_of_steps_and_not_the_answer(cache, sampling):
    prompt, new = ids(39), 60

    def answer(draft):
        serving = engine(cache)
        tokens = finish(serving, serving.submit(prompt, max_new_tokens=new, sampling=sampling, draft=draft))[0]
        assert_empty(serving)
        return tokens, serving._steps

    plain, steps = answer(None)
    right, fewer = answer(lambda tokens: plain[len(tokens) - len(prompt) :][:3])
    half, some = answer(lambda tokens: [*plain[len(tokens) - len(prompt) :][:1], 1, 2])
    wrong, most = answer(lambda tokens: [(plain[min(len(tokens) - len(prompt), new - 1)] + 1) % 64] * 3)
    assert right == half == wrong == plain
    assert fewer < 0.4 * steps and fewer < some < steps and most == steps


def test_a_prefix_is_read_once_where_that_changes_nothing():
    """Plain cache, routing imposed: found by itself, and the answer is that of the whole prompt."""
    prompts = [[*ids(80), *ids(n, n)] for n in (0, 1, 30)]
    fresh, sharing = engine(PLAIN), engine(PLAIN)
    sharing.cache_prefix(ids(80), routing="sparse")
    for prompt in prompts:
        wanted = fresh.submit(prompt, max_new_tokens=20, routing="sparse")
        got = sharing.submit(prompt, max_new_tokens=20, routing="sparse")
        other = sharing.submit(prompt, max_new_tokens=2, routing="full")
        assert finish(fresh, wanted) == finish(sharing, got, other)[:1]
        assert got.reused == 80 and other.reused == wanted.reused == 0


def test_a_packed_prefix_is_used_when_named_and_brings_its_routing():
    serving = engine()
    prefix = serving.cache_prefix(ids(90))
    same = [*ids(90), *ids(11, 1)]
    first = serving.submit(same, max_new_tokens=30, prefix=prefix)
    beside = [serving.submit([*ids(90), *ids(n, n)], max_new_tokens=30, prefix=prefix) for n in (0, 4)]
    unnamed = serving.submit(same, max_new_tokens=2)
    answers = finish(serving, first, *beside, unnamed)
    assert first.reused == 90 and unnamed.reused == 0
    np.testing.assert_array_equal(first.mode_LK, prefix.mode_LK)
    alone = engine()
    assert finish(alone, alone.submit(same, max_new_tokens=30, prefix=alone.cache_prefix(ids(90)))) == answers[:1]
    serving.drop_prefix(prefix)
    assert_empty(serving)
    with pytest.raises(ConfigError, match="was dropped"):
        serving.submit(same, max_new_tokens=1, prefix=prefix)


def test_a_prefix_gives_way_and_is_read_again():
    serving = engine()
    prefix = serving.cache_prefix(ids(90), routing="full")
    before = finish(serving, serving.submit(ids(90), max_new_tokens=5, prefix=prefix))
    assert serving.slots.pool.free < serving.slots.pool.size
    finish(serving, serving.submit(ids(90, 1), max_new_tokens=60, routing="full"))
    assert prefix.kept is None and not prefix.dropped
    assert finish(serving, serving.submit(ids(90), max_new_tokens=5, prefix=prefix)) == before
    serving.drop_prefix(prefix)
    assert_empty(serving)


def beam_search(prompt, mode, width, new):
    """By the definition, with a forward pass over everything for each beam."""
    beams = [(0.0, [])]
    for _ in range(new):
        rows = np.zeros((width, len(prompt) + new), np.int32)
        for i, (_, tokens) in enumerate(beams):
            rows[i, : len(prompt) + len(tokens)] = [*prompt, *tokens]
        modes = np.repeat(mode[:, None], width, 1)
        logits = model()(jnp.asarray(rows), routing=modes).logits[:, len(prompt) + len(beams[0][1]) - 1]
        logp = np.asarray(jax.nn.log_softmax(logits))
        every = [(s + logp[i, t], [*tokens, t]) for i, (s, tokens) in enumerate(beams) for t in range(64)]
        beams = sorted(every, key=lambda beam: -beam[0])[:width]
    return beams[0]


@pytest.mark.parametrize("prefixed", [False, True])
def test_beams_find_what_the_definition_finds(prefixed):
    serving, prompt = engine(PLAIN), ids(50)
    prefix = serving.cache_prefix(ids(40)) if prefixed else None
    prompt = [*ids(40), *ids(10, 1)] if prefixed else prompt
    request = serving.submit(prompt, max_new_tokens=6, beams=3, prefix=prefix)
    other = serving.submit(ids(7), max_new_tokens=9)
    finish(serving, request, other)
    score, tokens = beam_search(prompt, request.mode_LK, 3, 6)
    assert request.tokens == tokens
    assert request.score == pytest.approx(score / 6, abs=1e-4)
    assert_empty(serving)


def test_beams_over_packed_pages_end_at_a_stop_token_and_leave_nothing():
    serving = engine()
    free = serving.submit(ids(39), max_new_tokens=60, beams=2)
    finish(serving, free)
    stops = [free.tokens[40], free.tokens[45]]
    stopped = serving.submit(ids(39), max_new_tokens=60, beams=2, stop_tokens=stops)
    finish(serving, stopped)
    assert stopped.tokens[-1] in stops and stopped.finish == "stop"
    assert not set(stopped.tokens[:-1]) & set(stops)
    assert_empty(serving)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prompt": []}, "prompt is empty"),
        ({"prompt": [64]}, "Wrong tokenizer"),
        ({"max_new_tokens": 0}, "1 or more"),
        ({"max_new_tokens": 151}, "= 161; the rows of this engine hold 160"),
        ({"routing": np.zeros((1, 1, 2))}, r"want \(2, 1, 2\)"),
        ({"beams": 4}, "want 1 to 3, the slots"),
        ({"beams": 2, "sampling": SAMPLED}, "leave temperature and draft out"),
        ({"seed": -1}, "seed is -1"),
        ({"seed": 0.5}, "seed is 0.5; want a whole number"),
        ({"max_new_tokens": 3.5}, "max_new_tokens is 3.5; want a whole number"),
        ({"prompt": [1.0]}, "a token id of the prompt is 1.0"),
        ({"prompt": "12"}, "a token id of the prompt is '1'"),
        ({"prompt": 5}, "want a sequence of token ids"),
        ({"stop_tokens": ["2"]}, "a token id of stop_tokens is '2'"),
        ({"router_bias": float("nan")}, "router_bias is nan"),
        ({"beams": 2, "length_penalty": float("inf")}, "length_penalty is inf"),
        ({"beams": 2, "stop_tokens": range(63)}, "leave less than 2 beams"),
        ({"sampling": {"temperature": 1}, "beams": 2}, "want a Sampling"),
        ({"draft": [1]}, r"draft is \[1\]; want a function"),
    ],
)
def test_requests_that_cannot_be_are_refused_when_they_come(options, message):
    serving = engine()
    with pytest.raises((ShapeError, ConfigError), match=message):
        serving.submit(**{"prompt": ids(10), "max_new_tokens": 4, **options})
    assert serving.idle


@pytest.mark.parametrize("name", ["slots", "max_length", "step_tokens", "flush_rows"])
@pytest.mark.parametrize("value", [0, 1.5, True, "2"])
def test_sizes_of_an_engine_are_whole_numbers(name, value):
    with pytest.raises(ConfigError, match=f"engine {name} is .*; want a whole number, 1 or more"):
        EngineConfig(**{name: value})
    assert getattr(EngineConfig(**{name: np.int64(2)}), name) == 2


def test_a_request_beyond_the_pool_is_refused_with_what_would_fit():
    serving, size = engine(), page_bytes()
    asked = dict(max_new_tokens=110, beams=2)
    with pytest.raises(ShapeError, match=rf"need {28 * size} bytes .* every head is full.* has {20 * size}\.") as error:
        serving.submit(ids(50), **asked)
    # One group of the prompt for both beams, then two for each.
    assert "max_new_tokens up to 85 fits" in str(error.value)
    serving.cancel(serving.submit(ids(50), max_new_tokens=85, beams=2))
    serving.cancel(serving.submit(ids(50), **asked, routing="sparse"))
    # With routing imposed nothing is left to be decided.
    with pytest.raises(ShapeError, match=rf"need {28 * size} bytes of pages; the pool has"):
        serving.submit(ids(50), **asked, routing="full")
    assert_empty(serving)


def test_drafts_that_are_too_long_or_no_tokens_end_their_request():
    short = dataclasses.replace(PACKED, residual=2)
    for cache, draft, message in (
        (PACKED, [1] * 4, "a draft of more than 3 tokens"),
        (short, [1] * 3, "a draft of more than 2 tokens"),
        (PACKED, [64], r"want ids in \[0, 64\)"),
    ):
        serving = engine(cache)
        request = serving.submit(ids(39), max_new_tokens=9, draft=lambda _, draft=draft: draft)
        finish(serving, request)
        assert request.finish == "error" and len(request.tokens) < 9
        with pytest.raises(ShapeError, match=message):
            raise request.error
        assert_empty(serving)


def test_a_callback_that_raises_once_at_the_last_token_ends_its_request():
    serving, events = engine(PLAIN), []

    def hear(event):
        events.append(event)
        if len(event.request.tokens) == 4:
            raise BrokenPipeError("client went away")

    faulty, other = (serving.submit(ids(9), max_new_tokens=4, on_event=hear) for hear in (hear, None))
    assert finish(serving, faulty, other)[0] == other.tokens and len(other.tokens) == 4
    assert faulty.finish == "error" and isinstance(faulty.error, BrokenPipeError) and len(events) == 4
    assert list(serving.stream(faulty))[-1].finish == "error"
    assert_empty(serving)


def test_an_interruption_in_a_callback_reaches_the_caller_and_costs_its_request_only():
    serving = engine(PLAIN)

    def interrupt(event):
        raise KeyboardInterrupt

    faulty, other = (serving.submit(ids(9), max_new_tokens=4, on_event=hear) for hear in (interrupt, None))
    with pytest.raises(KeyboardInterrupt):
        serving.step()
    assert len(finish(serving, faulty, other)[1]) == 4 and faulty.finish == "error"
    assert_empty(serving)


def test_a_prefix_that_cannot_be_read_ends_the_requests_that_name_it(monkeypatch):
    serving = engine()
    prefill = serving.slots.prefill

    def fail_for_prefix(prompt, *rest):
        if len(prompt) == 50:
            raise MemoryError("too large")
        return prefill(prompt, *rest)

    monkeypatch.setattr(serving.slots, "prefill", fail_for_prefix)
    prefix = serving.cache_prefix(ids(50))
    named = serving.submit([*ids(50), 1], max_new_tokens=3, prefix=prefix)
    other = serving.submit(ids(9), max_new_tokens=3)
    finish(serving, named, other)
    assert named.error is prefix.error is not None and len(other.tokens) == 3
    with pytest.raises(ConfigError, match="could not be read"):
        serving.submit(ids(50), max_new_tokens=1, prefix=prefix)
    serving.drop_prefix(prefix)
    assert_empty(serving)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"slots": 0}, "slots is 0"),
        ({"step_tokens": 9}, "step_tokens is 9; want 1 to 8"),
        ({"max_length": 1000}, "the model has 512 positions"),
        ({"pool_mib": 1e-4}, "less than one page"),
    ],
)
def test_engines_that_cannot_be_are_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        engine(**changes)


def test_prefixes_that_do_not_fit_the_request_are_refused():
    serving = engine()
    prefix = serving.cache_prefix(ids(20))
    with pytest.raises(ShapeError, match="does not start with the 20 tokens"):
        serving.submit(ids(30, 1), max_new_tokens=1, prefix=prefix)
    with pytest.raises(ConfigError, match="routing and prefix"):
        serving.submit(ids(20), max_new_tokens=1, prefix=prefix, routing="full")
    serving.submit(ids(20), max_new_tokens=1, prefix=prefix)
    with pytest.raises(ConfigError, match="1 waiting"):
        serving.drop_prefix(prefix)
    finish(serving)
    serving.drop_prefix(prefix)
    assert_empty(serving)
