"""Against a real HTTP server on this machine."""

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from elastic_jax.errors import ConfigError, DataError
from eval.harness.backends.endpoint import EndpointBackend, EndpointConfig
from eval.samples import ENDPOINT_ARM, Message, Prompt, Sample


class Server(ThreadingHTTPServer):
    """Answers each request with the next of `script`: a status, or a function of the request's body."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.requests, self.script, self.lock = [], [], threading.Lock()
        self.busy = self.most_busy = 0

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}/v1"


class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        server = self.server
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with server.lock:
            server.requests.append((self.path, body, self.headers))
            action = server.script.pop(0) if server.script else echo
            server.busy += 1
            server.most_busy = max(server.most_busy, server.busy)
        try:
            if isinstance(action, int):
                self.reply(action, b"not now")
            elif isinstance(action, tuple):
                self.reply(action[0], b"not now", *action[1:])
            elif action == "hang up":
                self.connection.close()
            else:
                self.reply(200, action(body))
        finally:
            with server.lock:
                server.busy -= 1

    def do_GET(self):
        self.server.requests.append((self.path, None, self.headers))
        self.reply(200, b"{}")

    def reply(self, status, content, retry_after="0.01", location=None):
        self.send_response(status)
        self.send_header("Retry-After", retry_after)
        if location is not None:
            self.send_header("Location", location)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_):
        pass


def echo(body):
    said = f"said {body['messages'][-1]['content']}" if "messages" in body else f"after {body['prompt']}"
    time.sleep(0.05)
    message = {"message": {"content": said}} if "messages" in body else {"text": said}
    return json.dumps({"choices": [message | {"finish_reason": "length"}], "usage": {"completion_tokens": 3}}).encode()


@pytest.fixture
def server():
    server = Server()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


def prompt(text="hello", prefix=""):
    sample = Sample(text, {}, max_new_tokens=7)
    return Prompt(sample, [1, 2], max_new_tokens=7, messages=(Message.of("user", text),), answer_prefix=prefix)


def ask(server, prompts, **changes):
    settings = {"chat": True, "retries": 2, "first_wait_s": 0.01, "timeout_s": 5} | changes
    backend = EndpointBackend(EndpointConfig(server.url, "judge", **settings))
    return list(backend.run("generate", prompts, ENDPOINT_ARM, batch_tokens=1, most_rows=1))


def test_chat_and_plain_prompts_are_asked_as_they_should(server, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    [(_, reply)] = ask(server, [prompt(prefix="The answer is")])
    assert (reply.text, reply.new_tokens, reply.finish) == ("said hello\nThe answer is", 3, "length")
    path, body, headers = server.requests[0]
    assert path == "/v1/chat/completions"
    assert (body["model"], body["max_tokens"], body["temperature"]) == ("judge", 7, 0)
    assert headers["Authorization"] == "Bearer secret"

    monkeypatch.delenv("OPENAI_API_KEY")
    [(_, reply)] = ask(server, [prompt(prefix="The answer is")], chat=False)
    assert reply.text == "after hello The answer is"
    assert server.requests[1][0] == "/v1/completions" and server.requests[1][2]["Authorization"] is None


def test_several_requests_run_at_one_time_and_each_reply_meets_its_prompt(server):
    prompts = [prompt(f"number {i}") for i in range(12)]
    answers = ask(server, prompts, concurrency=4)
    assert {p.sample.uid: r.text for p, r in answers} == {f"number {i}": f"said number {i}" for i in range(12)}
    assert 2 <= server.most_busy <= 4


ODD = b'{"choices": [{"message": {"content": [{"text": "parts"}]}}]}'


@pytest.mark.parametrize(
    "trouble", [429, 500, 503, "hang up", lambda body: b"no json", lambda body: b"{}", lambda body: ODD]
)
def test_passing_trouble_is_tried_again(server, trouble):
    server.script = [trouble, trouble]
    [(_, reply)] = ask(server, [prompt()])
    assert reply.error is None and reply.text == "said hello"
    assert len(server.requests) == 3


def test_trouble_that_stays_is_an_error_of_that_sample_alone(server):
    server.script = [500, 500, 500]
    answers = ask(server, [prompt("first"), prompt("second")], concurrency=1)
    assert {p.sample.uid: r.error and r.error.split(": ", 1)[1] for p, r in answers} == {
        "first": "HTTP 500: not now",
        "second": None,
    }


def test_a_request_that_is_refused_is_not_repeated(server):
    server.script = [400]
    [(_, reply)] = ask(server, [prompt()])
    assert "HTTP 400" in reply.error and len(server.requests) == 1


@pytest.mark.parametrize("status", [401, 403, 404])
def test_a_wrong_key_or_model_stops_the_run(server, status):
    server.script = [status]
    with pytest.raises(ConfigError, match=f"HTTP {status}.*--endpoint-model"):
        ask(server, [prompt()])


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_the_key_follows_no_redirection(server, monkeypatch, status):
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    other = Server()
    threading.Thread(target=other.serve_forever, daemon=True).start()
    server.script = [(status, "0", other.url)]
    with pytest.raises(ConfigError, match=f"HTTP {status}, see '{other.url}'"):
        ask(server, [prompt()])
    other.shutdown()
    other.server_close()
    assert not other.requests


def test_blanks_around_the_key_are_not_sent(server, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", " secret\r\n")
    ask(server, [prompt()])
    assert server.requests[0][2]["Authorization"] == "Bearer secret"


@pytest.mark.parametrize("key", ["sec\nret", "\u201csecret\u201d"])
def test_a_key_that_cannot_be_sent_is_refused_and_not_shown(monkeypatch, key):
    monkeypatch.setenv("OPENAI_API_KEY", key)
    with pytest.raises(ConfigError, match="OPENAI_API_KEY has a line break") as refused:
        EndpointBackend(EndpointConfig("http://x/v1", "judge"))
    assert "sec" not in str(refused.value)


@pytest.mark.parametrize("reason", ["abort", "error"])
def test_an_answer_that_broke_off_is_asked_again(server, reason):
    cut = {"choices": [{"message": {"content": "half of"}, "finish_reason": reason}]}
    server.script = [lambda body: json.dumps(cut).encode()]
    [(_, reply)] = ask(server, [prompt()])
    assert reply.text == "said hello" and len(server.requests) == 2


def test_an_answer_that_was_held_back_is_an_error(server):
    server.script = [lambda body: b'{"choices": [{"message": {"content": null}, "finish_reason": "content_filter"}]}']
    [(_, reply)] = ask(server, [prompt()])
    assert "content_filter" in reply.error and len(server.requests) == 1


def test_an_answer_that_takes_too_long_is_given_up(server):
    server.script = [lambda body: time.sleep(0.6) or echo(body)] * 3
    [(_, reply)] = ask(server, [prompt()], timeout_s=0.1, retries=1)
    assert "timed out" in reply.error


def test_an_empty_reply_is_a_reply(server):
    server.script = [lambda body: b'{"choices": [{"message": {"content": null}, "finish_reason": "stop"}]}']
    [(_, reply)] = ask(server, [prompt()])
    assert reply.text == "" and reply.error is None and reply.finish == "stop"


def said(message):
    return lambda body: json.dumps({"choices": [{"message": message, "finish_reason": "stop"}]}).encode()


@pytest.mark.parametrize(
    "thinking", [{"thinking": [{"type": "text", "text": "Perhaps [[A]]."}]}, {"thinking": "Perhaps [[A]]."}]
)
def test_content_in_parts_is_its_text_without_the_thinking(server, thinking):
    parts = [{"type": "thinking"} | thinking, {"type": "text", "text": "[["}, {"type": "text", "text": "B]]"}]
    server.script = [said({"content": parts}), said({"content": parts[:1]})]
    (_, whole), (_, cut) = ask(server, [prompt("first"), prompt("second")], concurrency=1)
    assert whole.text == "[[B]]"
    assert cut.text == "<think>Perhaps [[A]]."


@pytest.mark.parametrize(
    "answer", [{"error": {"message": "Rate limit exceeded", "code": 429}}, ["Rate limit exceeded"], {"choices": []}]
)
def test_an_error_that_comes_as_an_answer_is_named(server, answer):
    server.script = [lambda body: json.dumps(answer).encode()] * 3
    [(_, reply)] = ask(server, [prompt()])
    assert reply.error.endswith(f"no answer, but {answer}") and len(server.requests) == 3


@pytest.mark.parametrize(("named", "waits"), [("86400", [60.0]), ("0.5", [0.5]), ("tomorrow", [0.01]), ("²", [0.01])])
def test_the_wait_that_an_endpoint_names_has_a_limit(server, monkeypatch, named, waits):
    waited = []
    monkeypatch.setattr(time, "sleep", waited.append)
    server.script = [(429, named), said({"content": "yes"})]
    [(_, reply)] = ask(server, [prompt()])
    assert reply.text == "yes" and waited == waits


def test_a_run_that_is_interrupted_waits_for_no_answer(server):
    go_on = threading.Event()
    server.script = [echo, lambda body: go_on.wait(30) and echo(body)]
    backend = EndpointBackend(EndpointConfig(server.url, "judge", concurrency=2))
    replies = backend.run("generate", [prompt("a"), prompt("b")], ENDPOINT_ARM, batch_tokens=1, most_rows=1)
    next(replies)
    replies.close()
    assert server.busy == 1
    go_on.set()


def test_an_endpoint_that_is_down_is_an_error():
    config = EndpointConfig("http://127.0.0.1:9/v1", "judge", retries=0, timeout_s=1)
    [(_, reply)] = EndpointBackend(config).run("generate", [prompt()], ENDPOINT_ARM, batch_tokens=1, most_rows=1)
    assert "refused" in reply.error


def test_prompts_of_token_ids_are_refused():
    backend = EndpointBackend(EndpointConfig("http://127.0.0.1:9/v1", "judge"))
    with pytest.raises(DataError, match="ids alone"):
        list(backend.run("generate", [Prompt(Sample("ids alone", {}), [1])], ENDPOINT_ARM, batch_tokens=1, most_rows=1))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"url": "localhost"}, "http://"),
        ({"url": "http://"}, "no host"),
        ({"url": "http://x:99999/v1"}, "cannot be read"),
        ({"url": "http://[::1/v1"}, "cannot be read"),
        ({"url": "http://x/v1?api-version=1"}, "a query"),
        ({"url": "http://user:pass@x/v1"}, "has a user name; want"),
        ({"url": "http://x/v 1"}, "a blank"),
        ({"model": ""}, "--endpoint-model"),
        ({"concurrency": 0}, "concurrency"),
    ],
)
def test_settings_that_make_no_sense_are_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        EndpointConfig(**({"url": "http://x/v1", "model": "m"} | changes))
