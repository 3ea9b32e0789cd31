"""`elastic-jax chat`: a conversation in the terminal."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from elastic_jax.cli.args import parse_verb
from elastic_jax.cli.model import ModelSettings, load_model, load_model_tokenizer
from elastic_jax.config import HeadMode
from elastic_jax.errors import ConfigError, ElasticError
from elastic_jax.kv_cache import CacheConfig
from elastic_jax.settings import check_seed, settings_yaml
from elastic_jax.text import stops
from elastic_jax.text.chat import chat_text, check_template
from elastic_jax.text.growing import GrowingText
from elastic_jax.text.tokens import encode_chat

if TYPE_CHECKING:
    from elastic_jax.engine import Engine, Request

_NEW = "/new"


@dataclass(frozen=True)
class ChatSettings(ModelSettings):
    """Model, cache and sampling of a conversation."""

    system: str | None = None
    """System message of the chat. By default that of the chat template."""
    max_length: int = 4096
    """Tokens of the whole conversation at most, the model's positions if these are fewer."""
    max_new_tokens: int = 512
    """Most tokens of an answer."""
    routing: Literal["auto", "full", "sparse", "heads", "routers"] = "auto"
    """As for `generate`. Only routers read the whole conversation again for every answer."""
    router_bias: float = 0.0
    """As for `generate`."""
    temperature: float = 0.0
    """Temperature of the sampling. 0: always the most likely token; 1: the distribution of the model."""
    top_k: int = 0
    """Number of most likely tokens to sample from; 0: no limit."""
    top_p: float = 1.0
    """Sample from the fewest tokens whose probabilities add up to this; 1: no limit."""
    seed: int = 0
    """Seed of the sampling, 0 to 2**31 - 1. Answer i has seed + i."""
    cache: CacheConfig = field(default_factory=CacheConfig)
    """Cache of keys and values. Below 16 bits the whole conversation is read again for every answer."""

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1 or self.max_length < 2:
            raise ConfigError("max_new_tokens wants 1 or more, and max_length 2 or more.")
        check_seed(self.seed)


class Conversation:
    """The turns so far, over an engine of one row that keeps what it has read."""

    def __init__(self, settings: ChatSettings, engine: Engine, tokenizer: Any, ends: Sequence[int]):
        self._settings, self._engine, self._tokenizer, self._ends = settings, engine, tokenizer, ends
        self._answers = 0
        self.begin()

    def begin(self) -> None:
        """Forgets all turns but the system message."""
        system = self._settings.system
        self._turns = [{"role": "system", "content": system}] if system else []

    def answer(self, text: str) -> None:
        """Prints the answer to one more message as it grows, then a line of measurements to stderr.

        Ctrl-C ends the answer; what was said of it is part of the conversation.

        Raises:
            ElasticError: the conversation is too long, or its answer has failed; the message is not part of it then.
        """
        settings, turns = self._settings, [*self._turns, {"role": "user", "content": text}]
        prompt = encode_chat(self._tokenizer, chat_text(self._tokenizer, turns, thinking=True))
        room = self._engine.config.max_length - len(prompt)
        if room < 1:
            raise ConfigError(
                f"the conversation has {len(prompt)} tokens and the cache {self._engine.config.max_length} places; "
                f"{_NEW} begins another one, --max-length makes room."
            )
        start = time.perf_counter()
        request = self._engine.submit(
            prompt,
            max_new_tokens=min(settings.max_new_tokens, room),
            sampling=self._sampling(),
            seed=(settings.seed + self._answers) % 2**31,
            routing=None if settings.routing == "auto" else settings.routing,
            router_bias=settings.router_bias,
            stop_tokens=self._ends,
        )
        said = self._print_growing(request)
        if request.error is not None:
            raise request.error
        self._answers += 1
        self._turns = [*turns, {"role": "assistant", "content": said}]
        self._print_measurements(request, time.perf_counter() - start)

    def _sampling(self) -> Any:
        from elastic_jax.sampling import Sampling

        settings = self._settings
        return Sampling(temperature=settings.temperature, top_k=settings.top_k, top_p=settings.top_p)

    def _print_growing(self, request: Request) -> str:
        growing = GrowingText(self._tokenizer)
        try:
            for event in self._engine.stream(request):
                if event.token is not None:
                    print(growing.add(event.token), end="", flush=True)
                if growing.stopped:
                    break
        except KeyboardInterrupt:
            pass
        self._engine.cancel(request)
        print(growing.rest(), flush=True)
        return growing.whole

    def _print_measurements(self, request: Request, seconds: float) -> None:
        sparsity = 0.0 if request.mode_LK is None else float((request.mode_LK == HeadMode.SPARSE).mean())
        print(
            f"[{len(request.tokens)} tokens, {len(request.tokens) / seconds:.1f} a second; {request.reused} of "
            f"{len(request.prompt)} prompt tokens were read before; MSR {sparsity:.2f}; "
            f"cache {self._engine.nbytes / 2**20:.1f} MiB]",
            file=sys.stderr,
            flush=True,
        )


def main(argv: Sequence[str]) -> int:
    """Talk with a model in the terminal; the model reads each message once."""
    asked = parse_verb(ChatSettings, argv, verb="chat", summary=str(main.__doc__))
    settings = asked.settings
    if asked.dry_run:
        print(settings_yaml(settings), end="")
        return 0

    from elastic_jax.engine import Engine, EngineConfig
    from elastic_jax.generation import end_ids

    tokenizer = load_model_tokenizer(settings)
    check_template(tokenizer)
    model = load_model(settings)
    have = model.config.positions
    length = settings.max_length if have is None else min(settings.max_length, have)
    engine = Engine(model, EngineConfig(slots=1, max_length=length), settings.cache, reuse=True)
    ends = stops.end_tokens(tokenizer, end_ids(model.config))
    conversation = Conversation(settings, engine, tokenizer, ends)
    print(f"{_NEW} begins another conversation, Ctrl-C ends an answer, Ctrl-D the program.", file=sys.stderr)
    while True:
        try:
            text = input("> " if sys.stdin.isatty() else "").strip()
        except EOFError:
            return 0
        if text == _NEW:
            conversation.begin()
        elif text:
            try:
                conversation.answer(text)
            except ElasticError as error:
                print(f"elastic-jax chat: {error}", file=sys.stderr)
