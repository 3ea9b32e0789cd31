"""Models behind an OpenAI-compatible HTTP endpoint: `/chat/completions`, or `/completions` for plain text."""

from __future__ import annotations

import http.client
import json
import os
import queue
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from elastic_jax.errors import ConfigError, DataError, shown
from elastic_jax.files import parse_json
from eval.harness.thinking import answer_of, with_opening
from eval.samples import Arm, Kind, Prompt, Reply

_NO_REPLY = (ValueError, LookupError, TypeError, AttributeError, ArithmeticError)
"""What reading an answer of another form raises."""
_RETRIED = {408, 409, 425, 429, 500, 502, 503, 504}
_BROKEN_OFF = {"abort", "error"}
"""What vLLM, SGLang and OpenRouter give as the reason of an answer's end where they failed before it."""
_LONGEST_WAIT_S = 60.0
"""Most seconds between two tries. Where an endpoint asks for hours, its samples fail, and a restart asks again."""


@dataclass(frozen=True)
class EndpointConfig:
    """Where the endpoint is and how patiently it is asked."""

    url: str
    """Base address, such as `http://localhost:8000/v1`."""
    model: str
    """Name of the model there."""
    chat: bool = True
    concurrency: int = 8
    """Requests under way at one time."""
    timeout_s: float = 600.0
    retries: int = 5
    """Further tries after a time-out, a lost connection, HTTP 429 or 5xx."""
    first_wait_s: float = 1.0
    """Wait before the second try; doubles from try to try, unless the endpoint names a time itself (60 s at most)."""
    key_variable: str = "OPENAI_API_KEY"
    """Environment variable that holds the key, sent if it is set. The key is written nowhere."""
    max_tokens: int | None = None
    """The model's context, if known."""

    def __post_init__(self) -> None:
        if not self.url.startswith(("http://", "https://")):
            raise ConfigError(f"endpoint is {self.url!r}; want an address that begins with http:// or https://.")
        if wrong := _wrong_in_address(self.url):
            raise ConfigError(
                f"the endpoint's address has {wrong}; want scheme, host, port and path only, such as "
                "http://localhost:8000/v1."
            )
        if not self.model:
            raise ConfigError("no model name for the endpoint: give it with --endpoint-model NAME.")
        if self.concurrency < 1 or self.retries < 0 or self.timeout_s <= 0 or self.first_wait_s < 0:
            raise ConfigError("an endpoint wants concurrency of 1 or more, retries of 0 or more and times above 0.")


class EndpointBackend:
    """Asks an endpoint for greedy continuations, several at a time."""

    kinds: frozenset[Kind] = frozenset(("generate",))

    def __init__(self, config: EndpointConfig):
        """
        Raises:
            ConfigError: the key has characters that no request can carry.
        """
        self._config = config
        self.max_tokens = config.max_tokens
        self._key = os.environ.get(config.key_variable, "").strip()
        if not (self._key.isascii() and self._key.isprintable()):
            raise ConfigError(
                f"the environment variable {config.key_variable} has a line break or a character beyond ASCII, such as "
                "a typographic quote; want the key alone."
            )
        self._opener = _opener()

    def identity(self) -> dict[str, Any]:
        """Names the context only where it is given, so that journals made without it stay valid."""
        made = {"endpoint": self._config.url, "endpoint_model": self._config.model, "chat": self._config.chat}
        return made if self.max_tokens is None else made | {"endpoint_tokens": self.max_tokens}

    def label(self, arm: Arm) -> str:
        return arm.name

    def run(
        self, kind: Kind, prompts: Sequence[Prompt], arm: Arm, *, batch_tokens: int, most_rows: int
    ) -> Iterator[tuple[Prompt, Reply]]:
        """Replies as they come in. What still fails after all tries comes back as a reply with an error.

        Raises:
            ConfigError: the endpoint refuses the key or does not know model or path.
            DataError: a task on token ids.
        """
        for prompt in prompts:
            if not prompt.messages:
                raise DataError(f"sample {prompt.sample.uid} is made of token ids; endpoints take text only.")
        waiting: queue.SimpleQueue[Prompt] = queue.SimpleQueue()
        found: queue.SimpleQueue[tuple[Prompt, Reply | BaseException]] = queue.SimpleQueue()
        for prompt in prompts:
            waiting.put(prompt)
        stop = threading.Event()

        def work() -> None:
            while not stop.is_set():
                try:
                    prompt = waiting.get_nowait()
                except queue.Empty:
                    return
                try:
                    found.put((prompt, self._ask(prompt)))
                except BaseException as error:
                    found.put((prompt, error))

        for _ in range(min(self._config.concurrency, len(prompts))):
            # daemons, which a program that was interrupted leaves behind: an answer may be minutes away
            threading.Thread(target=work, daemon=True).start()
        try:
            for _ in prompts:
                prompt, reply = found.get()
                if isinstance(reply, BaseException):
                    raise reply
                yield prompt, reply
        finally:
            stop.set()

    def _ask(self, prompt: Prompt) -> Reply:
        start, wait, error = time.perf_counter(), self._config.first_wait_s, ""
        for attempt in range(self._config.retries + 1):
            if attempt:
                time.sleep(wait)
                wait *= 2
            try:
                answer = self._post(prompt)
                return _reply(prompt, answer, time.perf_counter() - start)
            except urllib.error.HTTPError as refused:
                error = f"HTTP {refused.code}: {_detail(refused)}"
                if 300 <= refused.code < 400:
                    error = f"HTTP {refused.code}, see {shown(refused.headers.get('Location'))}"
                if refused.code in (401, 403, 404) or 300 <= refused.code < 400:
                    raise ConfigError(
                        f"{self._config.url} answers {error}. Check the address, --endpoint-model and the key in "
                        f"{self._config.key_variable}."
                    ) from refused
                if refused.code not in _RETRIED:
                    break
                named = refused.headers.get("Retry-After", "")
                wait = min(float(named), _LONGEST_WAIT_S) if named.replace(".", "", 1).isdecimal() else wait
            except (OSError, http.client.HTTPException, *_NO_REPLY) as failed:
                error = f"{type(failed).__name__}: {failed}"
        return Reply(error=f"{self._config.url}: {error}")

    def _post(self, prompt: Prompt) -> dict[str, Any]:
        config = self._config
        body: dict[str, Any] = {"model": config.model, "max_tokens": prompt.max_new_tokens, "temperature": 0}
        turns = [{"role": message.role, "content": message.text} for message in prompt.messages]
        if config.chat:
            # Endpoints differ in whether they go on with a begun reply; in the question it is understood everywhere.
            if prompt.answer_prefix:
                turns[-1]["content"] += f"\n{prompt.answer_prefix}"
            path, body["messages"] = "chat/completions", turns
        else:
            text = "\n\n".join(turn["content"] for turn in turns)
            path, body["prompt"] = "completions", f"{text} {prompt.answer_prefix}".rstrip()
        headers = {"Content-Type": "application/json"}
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        request = urllib.request.Request(f"{config.url.rstrip('/')}/{path}", json.dumps(body).encode(), headers)
        with self._opener.open(request, timeout=config.timeout_s) as response:
            return parse_json(response.read())


def _opener() -> urllib.request.OpenerDirector:
    """Opens addresses but follows no redirection: the key would go to the new host, and the request arrive empty."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler,
        urllib.request.HTTPHandler,
        urllib.request.HTTPSHandler,
        urllib.request.HTTPDefaultErrorHandler,
        urllib.request.HTTPErrorProcessor,
    ):
        opener.add_handler(handler())
    return opener


def _wrong_in_address(url: str) -> str | None:
    """What of an address cannot be asked; a password in it would stand in the journal."""
    try:
        parts = urllib.parse.urlsplit(url)
        missing = parts.hostname is None or parts.port == 0
    except ValueError as error:
        return f"a part that cannot be read ({error})"
    if missing:
        return "no host, or port 0"
    if parts.username is not None:
        return "a user name"
    if parts.query or parts.fragment:
        return "a query or a fragment"
    return "a blank or a control character" if not url.isprintable() or " " in url else None


def _reply(prompt: Prompt, answer: dict[str, Any], seconds: float) -> Reply:
    if not isinstance(answer, dict) or not answer.get("choices"):  # some endpoints report errors with status 200
        raise ValueError(f"no answer, but {shown(answer)}")
    choice = answer["choices"][0]
    reason = choice.get("finish_reason")
    if reason in _BROKEN_OFF:
        raise ValueError(f"the answer broke off ({reason}): {shown(choice.get('error'))}")
    if reason == "content_filter":
        return Reply(error="the endpoint's filter held the answer back (content_filter)")
    message = choice["message"] if "message" in choice else {"content": choice["text"]}
    text, thinking = _parts(message["content"])
    thinking = thinking or message.get("reasoning_content") or message.get("reasoning")
    finish = "length" if reason == "length" else "stop"
    if thinking and not text:
        text = f"<think>{thinking}"
    elif finish == "length" and not thinking and answer_of(text) == text:
        text = with_opening(prompt.thinking_tag, text)  # the endpoint's template has opened the thinking, as ours has
    usage = answer.get("usage") or {}
    return Reply(text, int(usage.get("completion_tokens") or 0), finish, {"seconds": seconds})


def _parts(content: Any) -> tuple[str, str]:
    """The text of a message and its thinking. Its content is a text or, as Mistral has it, a list of typed parts."""
    if content is None or isinstance(content, str):
        return content or "", ""
    if not isinstance(content, list):
        raise ValueError(f"the content of the reply is {shown(content)}; want a text")
    text = "".join(part["text"] for part in content if part["type"] == "text")
    thinking = "".join(_parts(part["thinking"])[0] for part in content if part["type"] == "thinking")
    return text, thinking


def _detail(refused: urllib.error.HTTPError) -> str:
    with refused:
        try:
            return refused.read(300).decode(errors="replace").strip() or str(refused.reason)
        except OSError:
            return str(refused.reason)
