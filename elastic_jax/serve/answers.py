"""One question of a client on its way through the engine: admitted, answered piece by piece, taken back."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from elastic_jax.engine import Engine
from elastic_jax.engine.admission import demand_of
from elastic_jax.engine.requests import Event, Request, TokenLogprob
from elastic_jax.errors import ElasticError, shown
from elastic_jax.routing import Imposed
from elastic_jax.serve.config import ServerConfig
from elastic_jax.serve.fields import Refused
from elastic_jax.serve.protocol import Question
from elastic_jax.serve.worker import Worker
from elastic_jax.text.growing import GrowingText

_LONGEST_WAIT_S = 60


@dataclass(frozen=True)
class Service:
    """What answers questions: an engine in its thread, a tokenizer, and how they are used."""

    worker: Worker
    tokenizer: Any
    config: ServerConfig
    name: str
    """Of the model."""
    stop_tokens: Sequence[int]
    routing: Imposed | None = None
    """As for `Engine.submit`."""
    router_bias: float = 0.0


@dataclass(frozen=True)
class Piece:
    """What is new of one answer."""

    index: int
    text: str
    logprobs: list[tuple[int, TokenLogprob]]
    """Tokens of this piece with their log-probabilities, where asked for."""
    finish: str | None
    """"stop" or "length" with the last piece."""


@dataclass
class Answer:
    """One answer as it grows."""

    text: GrowingText
    tokens: int = 0
    """Drawn so far; what the engine draws behind a stop string does not count."""
    untold: list[tuple[int, TokenLogprob]] = field(default_factory=list)
    finish: str | None = None


class Job:
    """The engine's requests for one question, and their answers."""

    def __init__(self, question: Question, service: Service):
        self.question = question
        self._service = service
        self._requests: list[Request] = []
        self._answers = [
            Answer(GrowingText(service.tokenizer, question.stops))
            for _ in range(question.answers * len(question.prompts))
        ]
        self._events: asyncio.Queue[tuple[int, Event]] = asyncio.Queue()
        self._loop = asyncio.get_running_loop()
        self._start = time.monotonic()

    async def submit(self) -> None:
        """Gives all requests to the engine, or none.

        Raises:
            Refused: the engine is full or has failed, or can never serve the question.
        """
        try:
            await self._service.worker.ask(self._submit)
        except ElasticError as error:
            raise Refused(400, str(error)) from error

    def _submit(self, engine: Engine) -> None:
        service, question = self._service, self.question
        if (failure := service.worker.failure) is not None:
            raise Refused(503, f"the engine has failed: {shown(failure)}. Restart the server.")
        if (load := promised(engine)) >= service.config.load:
            wait = seconds_until_one_ends(engine, service.worker.tokens_per_second())
            message = f"the server is full: its requests may need {load:.1f} times all rows or pages. Try again later."
            raise Refused(429, message, code="server_full", retry_after_s=wait)
        try:
            for number, prompt in enumerate(question.prompts):
                room = engine.config.max_length - len(prompt)
                for choice in range(question.answers):
                    index = number * question.answers + choice
                    self._requests.append(
                        engine.submit(
                            prompt,
                            max_new_tokens=question.max_tokens or max(min(service.config.answer_tokens, room), 1),
                            sampling=question.sampling,
                            seed=(question.seed + choice) % 2**31,
                            routing=service.routing,
                            router_bias=service.router_bias,
                            stop_tokens=service.stop_tokens,
                            logprobs=question.top_logprobs,
                            on_event=lambda event, index=index: self._hear(index, event),
                        )
                    )
        except Exception:
            self._cancel(engine)
            raise

    def _hear(self, index: int, event: Event) -> None:
        """Called by the worker's thread."""
        self._loop.call_soon_threadsafe(self._events.put_nowait, (index, event))

    def take_back(self) -> None:
        """Ends what still runs of it; also what `submit` is just about to start."""
        self._service.worker.tell(self._cancel)

    def _cancel(self, engine: Engine) -> None:
        for request in self._requests:
            engine.cancel(request)

    async def pieces(self) -> AsyncIterator[Piece]:
        """News of all answers until each has ended.

        Raises:
            Refused: it takes too long, or the work on it has failed.
        """
        most = self._service.config.timeout_s
        while not all(answer.finish for answer in self._answers):
            try:
                left = self._start + most - time.monotonic()
                index, event = await asyncio.wait_for(self._events.get(), left)
            except TimeoutError:
                raise Refused(504, f"no whole answer in {most:g} s.", code="timeout") from None
            piece = self._piece(index, event)
            if piece is not None:
                yield piece

    def _piece(self, index: int, event: Event) -> Piece | None:
        answer, request = self._answers[index], self._requests[index]
        if answer.finish is not None:
            return None
        if event.finish == "error":
            raise Refused(500, f"the answer failed: {shown(request.error)}.")
        if event.finish == "cancelled":
            raise Refused(503, "the engine has failed or the server shuts down.")
        text = ""
        if event.token is not None:
            text = answer.text.add(event.token)
            if request.logprobs and event.token not in request.stop_tokens:
                answer.untold.append((event.token, request.logprobs[answer.tokens]))
            answer.tokens += 1
        if answer.text.stopped:
            self._service.worker.tell(lambda engine: engine.cancel(request))
        elif event.finish is not None:
            text += answer.text.rest()
        answer.finish = "stop" if answer.text.stopped else event.finish
        if not text and answer.finish is None:
            return None
        logprobs, answer.untold = answer.untold, []
        return Piece(index, text, logprobs, answer.finish)

    def usage(self) -> dict[str, Any]:
        """Tokens read and drawn; of the prompt's, those are cached that rows of earlier requests held."""
        prompt = sum(map(len, self.question.prompts))
        drawn = sum(answer.tokens for answer in self._answers)
        cached = sum(request.reused for request in self._requests[:: self.question.answers])
        return {
            "prompt_tokens": prompt,
            "completion_tokens": drawn,
            "total_tokens": prompt + drawn,
            "prompt_tokens_details": {"cached_tokens": cached},
        }


def promised(engine: Engine) -> float:
    """What all requests that run and wait may need at once, in shares of the engine's rows or pages."""
    modes = [job.mode_LK if job.routing is None else job.routing[:, 0] for job in engine.requests]
    return sum(engine.slots.share(demand_of(job), mode) for job, mode in zip(engine.requests, modes, strict=True))


def seconds_until_one_ends(engine: Engine, tokens_per_second: float) -> int:
    """Whole seconds, 1 to 60, until some request has ended at the latest, at the present speed."""
    left = min((job.max_new_tokens - len(job.tokens) for job in engine.requests), default=0)
    running = sum(job.mode_LK is not None for job in engine.requests)
    seconds = left * running / tokens_per_second if tokens_per_second else 1.0
    return min(max(math.ceil(seconds), 1), _LONGEST_WAIT_S)
