"""The server over real sockets: answers, streams, clients that leave, refusals, measurements."""

import asyncio
import dataclasses
import json
import random
import re
import socket
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from chat_tokenizers import chat_tokenizer
from tiny import tiny_model

from elastic_jax.engine import Engine, EngineConfig
from elastic_jax.sampling import Sampling
from elastic_jax.serve.answers import Job, Service
from elastic_jax.serve.config import ServerConfig
from elastic_jax.serve.fields import Refused
from elastic_jax.serve.protocol import read_question
from elastic_jax.serve.worker import Worker
from elastic_jax.text.chat import chat_text
from elastic_jax.text.tokens import encode_chat


def ids(n, seed=0):
    return np.random.default_rng(seed).integers(0, 600, n).tolist()


def events(text):
    """The JSON of a stream that has ended as it should."""
    *chunks, last = text.removesuffix("\n\n").split("\n\n")
    assert last == "data: [DONE]"
    return [json.loads(chunk.removeprefix("data: ")) for chunk in chunks]


def test_answers_to_many_at_once_are_those_of_generate_alone(server):
    asked = [
        (ids(n, n), new, Sampling(warm), n) for n, new, warm in ((5, 9, 0), (70, 6, 1.0), (5, 9, 1.0), (140, 4, 0))
    ]

    def ask(question):
        prompt, new, sampling, seed = question
        return server.complete(prompt, max_tokens=new, temperature=sampling.temperature, seed=seed)

    with ThreadPoolExecutor(4) as clients:
        replies = list(clients.map(ask, asked))
    for (prompt, new, sampling, seed), reply in zip(asked, replies, strict=True):
        (choice,), usage = reply["choices"], reply["usage"]
        assert choice["text"] == server.alone(prompt, new, sampling, seed)
        assert (
            usage["prompt_tokens"] == len(prompt) and usage["total_tokens"] == len(prompt) + usage["completion_tokens"]
        )
        assert (usage["completion_tokens"] == new) == (choice["finish_reason"] == "length")
    server.wait_until_idle()


def test_a_chat_is_streamed_as_it_is_answered_whole(server):
    whole = server.chat("Where is the key?", temperature=1, seed=5)
    options = {"stream": True, "stream_options": {"include_usage": True}, "temperature": 1, "seed": 5}
    first, *chunks, last = events(server.chat("Where is the key?", **options))
    (choice,) = whole["choices"]
    assert first["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    deltas = [chunk["choices"][0]["delta"].get("content", "") for chunk in chunks]
    assert "".join(deltas) == choice["message"]["content"] and len(deltas) > 1
    assert chunks[-1]["choices"][0]["finish_reason"] == choice["finish_reason"]
    assert last["choices"] == [] and last["usage"]["completion_tokens"] == whole["usage"]["completion_tokens"]
    prompt = encode_chat(
        chat_tokenizer(), chat_text(chat_tokenizer(), [{"role": "user", "content": "Where is the key?"}])
    )
    assert choice["message"]["content"] == server.alone(prompt, 12, Sampling(1.0), 5)


def test_several_answers_count_up_the_seed(server):
    both = server.complete(ids(9), n=2, max_tokens=6, seed=7)["choices"]
    apart = [server.complete(ids(9), max_tokens=6, seed=seed)["choices"][0] for seed in (7, 8)]
    assert [choice["index"] for choice in both] == [0, 1]
    assert [choice["text"] for choice in both] == [choice["text"] for choice in apart]
    two = server.complete([ids(9), ids(11)], max_tokens=3, temperature=0)
    assert len(two["choices"]) == 2 and two["usage"]["prompt_tokens"] == 20


def test_a_stop_string_ends_the_answer_and_the_work(server):
    free = server.complete(ids(20, 3), max_tokens=40, temperature=0)["choices"][0]["text"]
    stop = next(free[at : at + 2] for at in range(10, len(free)) if free[at : at + 2].isascii())
    for stream in (False, True):
        reply = server.complete(ids(20, 3), max_tokens=40, temperature=0, stop=[stop, "never there"], stream=stream)
        choices = [chunk["choices"][0] for chunk in events(reply)] if stream else reply["choices"]
        assert "".join(choice["text"] for choice in choices) == free[: free.index(stop)]
        assert choices[-1]["finish_reason"] == "stop"
    server.wait_until_idle()


def test_log_probabilities(server):
    """Greedy: what is drawn is the most likely token."""
    chosen = server.chat("Hello", temperature=0, logprobs=True, top_logprobs=2)["choices"][0]["logprobs"]["content"]
    assert len(chosen) == 12
    for token in chosen:
        assert len(token["top_logprobs"]) == 2 and token["logprob"] < 0
        assert token["top_logprobs"][0] == {name: token[name] for name in ("token", "logprob", "bytes")}
        assert token["bytes"] is None or bytes(token["bytes"]).decode() == token["token"]
    reply = server.complete(ids(9), max_tokens=5, temperature=0, logprobs=1)["choices"][0]["logprobs"]
    assert [max(top.values()) for top in reply["top_logprobs"]] == reply["token_logprobs"]
    assert reply["text_offset"] == [len("".join(reply["tokens"][:i])) for i in range(5)]
    stream = events(server.complete(ids(9), max_tokens=5, temperature=0, logprobs=1, stream=True))
    found = [chunk["choices"][0]["logprobs"] for chunk in stream]
    assert [text for told in found if told for text in told["tokens"]] == reply["tokens"]
    assert [place for told in found if told for place in told["text_offset"]] == reply["text_offset"]


def test_a_conversation_reuses_what_was_read(server):
    prompt, reused = ids(30, 9), []
    for turn in range(4):
        reply = server.complete(prompt, max_tokens=5, temperature=0)
        reused.append(reply["usage"]["prompt_tokens_details"]["cached_tokens"])
        prompt = [*prompt, *ids(6, turn)]
    assert reused == [0, 30, 36, 42]
    assert server.gauge("cached_tokens_total") >= 108
    talk = ["One two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen. " * 2]
    for turn in range(3):
        reply = server.chat(*talk, temperature=0)
        talk += [reply["choices"][0]["message"]["content"], "And now?"]
        assert bool(reply["usage"]["prompt_tokens_details"]["cached_tokens"]) == (turn > 0)


TEXT = {"model": "tiny", "prompt": "Hello"}
CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "Hello"}]}


@pytest.mark.parametrize(
    ("path", "body", "status", "message"),
    [
        ("/v1/completions", b"{", 400, "the body is no JSON"),
        ("/v1/completions", b"\xff\xfe", 400, "the body is no JSON"),
        ("/v1/completions", b"[" * 5000, 400, "nested too deep"),
        ("/v1/completions", TEXT | {"model": "gpt"}, 404, "there is no model 'gpt'; this server has 'tiny'"),
        ("/v1/completions", TEXT | {"prompt": ids(400)}, 400, "the rows of this engine hold 400"),
        ("/v1/completions", TEXT | {"prompt": [9999]}, 400, "Wrong tokenizer"),
        ("/v1/completions", TEXT | {"prompt": "x" * 20_000}, 413, "the body is larger than 10485 bytes"),
        ("/v1/nothing", TEXT, 404, "POST /v1/nothing: Not Found"),
        ("/v1/models", TEXT, 405, "Method Not Allowed"),
    ],
)
def test_what_cannot_be_answered_is_refused(server, path, body, status, message):
    got, reply, _ = server.ask(path, body)
    assert got == status and message in reply["error"]["message"], reply


def test_models_health_and_key(server):
    assert server.ask("/v1/models")[1]["data"][0]["id"] == "tiny"
    assert server.ask("/v1/models/tiny")[0] == 200 and server.ask("/v1/models/other")[0] == 404
    assert server.ask("/health", key="")[:2] == (200, {"status": "ok"})
    for path, body in (("/v1/models", None), ("/metrics", None), ("/v1/completions", TEXT)):
        status, reply, headers = server.ask(path, body, key="wrong")
        assert status == 401 and "Bearer" in reply["error"]["message"] and headers["www-authenticate"] == "Bearer"
    assert server.gauge("rows") == 3 and server.gauge("cache_bytes") == server.engine.nbytes


def hang_up(server, body, *, after):
    """Sends a question, takes the reply's first bytes, and closes the connection."""
    content = json.dumps(body).encode()
    head = "POST /v1/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer a key\r\n"
    head += f"Content-Length: {len(content)}\r\n\r\n"
    connection = socket.create_connection(("127.0.0.1", server.port), timeout=300)
    connection.sendall((head.encode() + content)[:after])
    return connection


def test_a_full_server_says_when_to_come_again_and_forgets_clients_that_leave(server):
    """Nine questions fill three rows three times over; then their clients leave, some streams, some not."""
    long = [TEXT | {"prompt": ids(20, n), "max_tokens": 370, "temperature": 0, "stream": n % 2 == 0} for n in range(9)]
    clients = [hang_up(server, body, after=None) for body in long]
    for client in clients[::2]:
        client.recv(1)
    while server.gauge("load") < 3 and not server.engine.idle:
        pass
    status, reply, headers = server.ask("/v1/completions", TEXT)
    assert status == 429 and "server is full" in reply["error"]["message"] and 1 <= int(headers["retry-after"]) <= 60
    waiting = asyncio.run(server.service.worker.ask(lambda engine: engine.requests[3:]))
    for client in clients:
        client.close()
    server.wait_until_idle()
    assert {request.finish for request in waiting} == {"cancelled"} and len(waiting) >= 3
    replies = dict(re.findall(r'replies_total{status="(\d+)"} (\d+)', server.ask("/metrics")[1]))
    assert int(replies["429"]) >= 1 and int(replies["499"]) >= 4


def misbehave(server, count):
    rng = random.Random(count)
    for number in range(count):
        body = TEXT | {"prompt": ids(5, number), "max_tokens": 40, "stream": number % 2 == 0}
        if number % 3 == 0:
            content = bytearray(json.dumps(body), "utf-8")
            content[rng.randrange(len(content))] = rng.randrange(256)
            assert server.ask("/v1/completions", bytes(content))[0] in (200, 400, 404, 429)
        else:
            hang_up(server, body, after=rng.choice([None, rng.randrange(1, 300)])).close()
    server.wait_until_idle()
    assert server.complete(ids(5), max_tokens=6, temperature=0)["choices"][0]["text"] == server.alone(
        ids(5), 6, Sampling(), 0
    )


def test_malformed_and_aborted_requests_leave_nothing(server):
    misbehave(server, 40)


@pytest.mark.slow
def test_five_hundred_malformed_and_aborted_requests_leave_nothing(server):
    misbehave(server, 500)


def question(server, **fields):
    body = json.dumps(TEXT | {"max_tokens": 300} | fields).encode()
    return read_question(body, server.service.tokenizer, chat=False, model="tiny", most_answers=4)


def error_of(service, question):
    """How an answer ends that does not succeed."""

    async def answer():
        job = Job(question, service)
        try:
            await job.submit()
            async for _ in job.pieces():
                pass
        finally:
            job.take_back()

    with pytest.raises(Refused) as refused:
        asyncio.run(answer())
    return refused.value


def test_a_request_that_takes_too_long_ends(server):
    service = dataclasses.replace(server.service, config=dataclasses.replace(server.service.config, timeout_s=0.05))
    error = error_of(service, question(server))
    assert error.status == 504 and "no whole answer in 0.05 s" in str(error)
    server.wait_until_idle()


def test_a_prompt_that_cannot_be_read_costs_no_other_request(server, monkeypatch):
    def fail(*_):
        raise MemoryError("no room")

    with monkeypatch.context() as patch:
        patch.setattr(server.engine.slots, "prefill", fail)
        status, reply, _ = server.ask("/v1/completions", TEXT | {"prompt": ids(50, 77)})
        stream = server.complete(ids(50, 77), stream=True)
    assert status == 500 and reply["error"]["message"] == "the answer failed: MemoryError('no room')."
    assert json.loads(stream.removeprefix("data: "))["error"]["type"] == "server_error"
    server.wait_until_idle()
    assert server.complete(ids(50, 77))["choices"]


def test_an_engine_that_fails_as_a_whole_ends_every_request():
    """The device is lost, say. The thread goes on to answer calls, so that the server can say so."""
    model = tiny_model(vocab_size=len(chat_tokenizer()))
    engine = Engine(model, EngineConfig(slots=1, max_length=100))

    def lost(*_, **__):
        raise RuntimeError("the device is lost")

    engine.slots.read = lost
    worker = Worker(engine)
    service = Service(worker, chat_tokenizer(), ServerConfig(), "tiny", ())
    asked = read_question(json.dumps(TEXT).encode(), chat_tokenizer(), chat=False, model="tiny", most_answers=1)
    worker.start()
    try:
        assert "the engine has failed or the server shuts down" in str(error_of(service, asked))
        again = error_of(service, asked)
        assert again.status == 503 and "the device is lost" in str(again)
    finally:
        worker.stop()
    assert engine.idle


@pytest.mark.slow
def test_sixty_four_clients_for_a_minute(server):
    """Nobody gets a wrong answer or another error than 429, and everybody gets an answer again and again."""
    asked = [(ids(n, n), new, Sampling(warm), n) for n in (3, 40, 90, 200) for new in (4, 30) for warm in (0.0, 1.0)]
    wanted = [server.alone(*question) for question in asked]
    end = time.monotonic() + 60

    def client(number):
        rng, answered, slowest = random.Random(number), 0, 0.0
        while time.monotonic() < end:
            choice, start = rng.randrange(len(asked)), time.monotonic()
            prompt, new, sampling, seed = asked[choice]
            body = {"prompt": prompt, "max_tokens": new, "temperature": sampling.temperature, "seed": seed}
            status, reply, headers = server.ask("/v1/completions", TEXT | body)
            if status == 429:
                time.sleep(int(headers["retry-after"]) * rng.random())
                continue
            assert status == 200 and reply["choices"][0]["text"] == wanted[choice]
            answered, slowest = answered + 1, max(slowest, time.monotonic() - start)
        return answered, slowest

    with ThreadPoolExecutor(64) as clients:
        results = list(clients.map(client, range(64)))
    assert min(answered for answered, _ in results) > 0 and max(slowest for _, slowest in results) < 60
    server.wait_until_idle()
