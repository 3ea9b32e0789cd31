"""One server with a tiny model for all files of this folder, on a real socket."""

from __future__ import annotations

import http.client
import json
import threading
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from chat_tokenizers import chat_tokenizer
from tiny import HEADS, tiny_model

from elastic_jax.engine import Engine, EngineConfig
from elastic_jax.generation import generate
from elastic_jax.sampling import Sampling
from elastic_jax.serve.answers import Service
from elastic_jax.serve.config import ServerConfig
from elastic_jax.serve.worker import Worker

KEY = "a key"


@dataclass
class Running:
    """A server, what it is made of, and ways to ask it."""

    engine: Engine
    service: Service
    port: int
    key: str = KEY

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def ask(self, path: str, body: Any = None, key: str = KEY, **headers: str) -> tuple[int, Any, dict[str, str]]:
        """Status, JSON or text, and headers of a reply; a body makes it a POST."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=300)
        content = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        sent = {"Authorization": f"Bearer {key}"} | headers
        connection.request("GET" if content is None else "POST", path, content, sent)
        reply = connection.getresponse()
        text, got = reply.read().decode(), dict(reply.headers)
        connection.close()
        return reply.status, json.loads(text) if "json" in got["content-type"] else text, got

    def complete(self, prompt: Any, **options: Any) -> dict[str, Any]:
        """The reply to a completion that succeeds."""
        status, reply, _ = self.ask("/v1/completions", {"model": "tiny", "prompt": prompt} | options)
        assert status == 200, reply
        return reply

    def chat(self, *texts: str, **options: Any) -> dict[str, Any]:
        """The reply to a chat in which user and assistant take turns."""
        messages = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]
        status, reply, _ = self.ask("/v1/chat/completions", {"model": "tiny", "messages": messages} | options)
        assert status == 200, reply
        return reply

    def alone(self, prompt: list[int], new: int, sampling: Sampling, seed: int) -> str:
        """The answer of `generate`."""
        model, stops = self.engine._model, self.service.stop_tokens
        out = generate(model, np.array([prompt]), max_new_tokens=new, sampling=sampling, seed=seed, stop_tokens=stops)
        return chat_tokenizer().decode(out.tokens[0, : int(out.lengths[0])], skip_special_tokens=True)

    def gauge(self, name: str) -> float:
        """One of the measurements."""
        lines = self.ask("/metrics")[1].splitlines()
        return next(float(line.split()[1]) for line in lines if line.startswith(f"elastic_jax_{name} "))

    def wait_until_idle(self) -> None:
        """Waits until no request is left, and checks that none has left anything behind."""
        time.sleep(0.2)  # what has just been sent is on its way
        for _ in range(600):
            if self.gauge("requests_running") == self.gauge("requests_waiting") == 0:
                break
            time.sleep(0.1)
        assert self.engine.idle and not self.engine.slots.lengths.any() and self.engine._rows.free == 3
        assert self.gauge("load") == 0


@pytest.fixture(scope="session")
def server():
    uvicorn = pytest.importorskip("uvicorn")
    pytest.importorskip("starlette")
    from elastic_jax.serve.app import make_app
    from elastic_jax.serve.server import listen

    tokenizer = chat_tokenizer()
    model = tiny_model(vocab_size=len(tokenizer))
    model.use_heads(HEADS)
    engine = Engine(model, EngineConfig(slots=3, max_length=400, step_tokens=4), reuse=True)
    config = ServerConfig(port=0, load=3.0, answer_tokens=12, body_mib=0.01, most_answers=4)
    service = Service(Worker(engine), tokenizer, config, "tiny", [tokenizer.eos_token_id])
    listening = listen(config)
    program = uvicorn.Server(uvicorn.Config(make_app(service, KEY), log_level="warning", ws="none"))
    thread = threading.Thread(target=program.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    yield Running(engine, service, listening.getsockname()[1])
    program.should_exit = True
    thread.join(30)
    listening.close()
    assert not thread.is_alive()
