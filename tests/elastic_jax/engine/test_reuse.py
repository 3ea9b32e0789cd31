"""Rows that keep the tokens of ended requests, and log-probabilities of answers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import HEADS, tiny_model

from elastic_jax.engine import Engine, EngineConfig
from elastic_jax.errors import ConfigError
from elastic_jax.kv_cache import CacheConfig
from elastic_jax.sampling import Sampling

SIZE = EngineConfig(slots=2, max_length=400, step_tokens=4)


@pytest.fixture(scope="module")
def heads_model():
    model = tiny_model()
    model.use_heads(HEADS)
    return model


@pytest.fixture(scope="module")
def alone(heads_model):
    """Answers of an engine whose rows keep nothing."""
    engine = Engine(heads_model, SIZE)
    return lambda prompt, **options: ask(engine, prompt, **options).tokens


def ids(n, seed=0):
    return np.random.default_rng(seed).integers(0, 64, n).tolist()


def ask(engine, prompt, **options):
    request = engine.submit(prompt, **{"max_new_tokens": 6, "stop_tokens": ()} | options)
    for _ in engine.run():
        pass
    assert request.error is None
    return request


def test_a_conversation_of_twenty_turns_reads_each_token_once(heads_model, alone):
    engine, prompt, read, last = Engine(heads_model, SIZE, reuse=True), ids(12), 0, 0
    for turn in range(20):
        request = ask(engine, prompt)
        assert request.tokens == alone(prompt)
        read += len(prompt) - request.reused
        assert request.reused == last, "all but what is new, and the answer's last token"
        last = len(prompt) + len(request.tokens) - 1
        prompt = [*prompt, *request.tokens, *ids(4, turn)]
    # Of each answer, the last token is read with the next question; all others were read as they were drawn.
    assert read == 12 + 19 * (1 + 4)


def test_two_conversations_do_not_take_each_others_rows(heads_model):
    """They begin alike, so the second one begins with a copy of the first one's row."""
    engine, talks, read = Engine(heads_model, SIZE, reuse=True), [[*ids(20), 1], [*ids(20), 2]], [0, 20]
    for turn in range(3):
        for number, prompt in enumerate(talks):
            request = ask(engine, prompt)
            assert request.reused == read[number]
            read[number] = len(prompt) + len(request.tokens) - 1
            talks[number] = [*prompt, *request.tokens, *ids(3, turn)]


def test_a_beginning_is_copied_from_a_row_that_goes_on(heads_model, alone):
    """One request runs on while another takes over its beginning, and a third one does so when both have ended."""
    engine, shared = Engine(heads_model, SIZE, reuse=True), ids(40)
    first = engine.submit([*shared, 1], max_new_tokens=30, stop_tokens=())
    engine.step()
    second = engine.submit([*shared, 2, 3], max_new_tokens=30, stop_tokens=(), sampling=Sampling(1.0), seed=3)
    for _ in engine.run():
        pass
    third = ask(engine, [*first.prompt, *first.tokens[:5], 7])
    assert (first.reused, second.reused, third.reused) == (0, 40, 46)
    assert first.tokens == alone(first.prompt, max_new_tokens=30)
    assert second.tokens == alone(second.prompt, max_new_tokens=30, sampling=Sampling(1.0), seed=3)
    assert third.tokens == alone(third.prompt)


def test_what_a_cancelled_request_has_read_is_reused_and_stays_right(heads_model, alone):
    engine, prompt = Engine(heads_model, SIZE, reuse=True), ids(50)
    ask(engine, prompt[:30])
    victim = engine.submit(prompt, max_new_tokens=9, stop_tokens=())
    engine.step()
    # Its row has read some more tokens, and is about to read others when it is cancelled.
    other = engine.submit(ids(9, 4), max_new_tokens=4, stop_tokens=(), draft=lambda _: (engine.cancel(victim), [])[1])
    for _ in engine.run():
        pass
    assert victim.finish == "cancelled" and len(other.tokens) == 4
    again = ask(engine, prompt)
    assert 30 < again.reused < 49 and again.tokens == alone(prompt)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ({"routing": "full"}, {}),
        ({"routing": "routers"}, {"routing": "routers"}),
        ({}, {"beams": 2}),
    ],
    ids=["another routing", "routers", "beams"],
)
def test_nothing_is_reused_where_the_answer_could_differ(heads_model, first, second):
    engine = Engine(heads_model, SIZE, reuse=True)
    ask(engine, ids(30), **first)
    assert ask(engine, ids(30), **second).reused == 0


def test_packed_rows_and_long_ends_are_read_whole(heads_model):
    packed = Engine(heads_model, SIZE, CacheConfig(bits=2, group=32, residual=8), reuse=True)
    plain = Engine(heads_model, SIZE, reuse=True)
    for engine, prompt in ((packed, ids(30)), (plain, [*ids(30), *ids(50, 1)])):
        ask(engine, ids(30))
        assert ask(engine, prompt).reused == 0


def test_warming_up_compiles_what_reuse_would_skip(heads_model):
    engine = Engine(heads_model, SIZE, reuse=True)
    read, prefill = [], engine.slots.prefill
    engine.slots.prefill = lambda prompt, *rest: (read.append(len(prompt)), prefill(prompt, *rest))[1]
    engine.warm_up(300)
    assert sorted(read) == [1, 128, 128, 256, 256, 300, 300], "with the heads' decisions imposed, and by routers"


@pytest.mark.parametrize("reused", [False, True])
def test_log_probabilities_are_those_of_the_model(heads_model, reused):
    """Sampled tokens too: temperature and top_k do not change them. Drafts are verified several at once."""
    engine, prompt = Engine(heads_model, SIZE, reuse=True), ids(20)
    if reused:
        ask(engine, prompt)
    plain = ask(engine, prompt, sampling=Sampling(0.7, top_k=5), seed=4)
    request = ask(
        engine,
        prompt,
        sampling=Sampling(0.7, top_k=5),
        seed=4,
        logprobs=3,
        draft=lambda tokens: plain.tokens[len(tokens) - len(prompt) :][:2],
    )
    assert request.tokens == plain.tokens and not plain.logprobs
    whole = jnp.asarray([[*prompt, *request.tokens]])
    logp = np.asarray(jax.nn.log_softmax(heads_model(whole, routing="heads").logits[0]))[len(prompt) - 1 :]
    for i, (token, found) in enumerate(zip(request.tokens, request.logprobs, strict=False)):
        assert found.logprob == pytest.approx(logp[i, token], abs=1e-4)
        best = np.argsort(-logp[i])[:3]
        assert [number for number, _ in found.most_likely] == best.tolist()
        np.testing.assert_allclose([value for _, value in found.most_likely], logp[i, best], atol=1e-4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"logprobs": 21}, "logprobs is 21; want 0 to 20"),
        ({"logprobs": 1.5}, "logprobs is 1.5; want a whole number"),
        ({"logprobs": 1, "beams": 2}, "beams have no log-probabilities"),
    ],
)
def test_log_probabilities_that_cannot_be(heads_model, options, message):
    with pytest.raises(ConfigError if "whole" not in message else ValueError, match=message):
        Engine(heads_model, SIZE, reuse=True).submit([1], max_new_tokens=2, **options)
