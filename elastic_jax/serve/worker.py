"""The thread that owns the engine: it takes calls between the steps, and events go back to the event loop."""

from __future__ import annotations

import asyncio
import functools
import logging
import queue
import threading
import time
from collections import deque
from collections.abc import Callable

from elastic_jax.engine import Engine
from elastic_jax.errors import shown

_LOG = logging.getLogger(__name__)
_RATE_S = 10.0
"""Seconds over which the speed is averaged."""


class Worker:
    """Steps the engine while it has requests. Nobody else may call the engine.

    Where a step fails for all rows at once, `failure` is set, and the engine does nothing any more.
    """

    def __init__(self, engine: Engine):
        self.failure: Exception | None = None
        self.tokens = 0
        """Drawn since the start."""
        self._engine = engine
        self._calls: queue.SimpleQueue[Callable[[], object] | None] = queue.SimpleQueue()
        self._drawn: deque[tuple[float, int]] = deque()
        self._thread = threading.Thread(target=self._work, name="engine", daemon=True)

    def start(self) -> None:
        """Starts the thread."""
        self._thread.start()

    def stop(self) -> None:
        """Ends the thread after the current step, whatever is left to do."""
        self._calls.put(None)
        self._thread.join()

    def tell(self, function: Callable[[Engine], object]) -> None:
        """Has `function(engine)` called between two steps, after what was told before; returns at once."""
        self._calls.put(functools.partial(function, self._engine))

    async def ask[R](self, function: Callable[[Engine], R]) -> R:
        """What `function(engine)` returns or raises between two steps. Call it in an event loop."""
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[R] = loop.create_future()

        def settle(set_it: Callable[..., None], value: object) -> None:
            if not answer.done():  # nobody waits any more for one that was cancelled
                set_it(value)

        def call(engine: Engine) -> None:
            try:
                result = function(engine)
            except Exception as error:
                loop.call_soon_threadsafe(settle, answer.set_exception, error)
            else:
                loop.call_soon_threadsafe(settle, answer.set_result, result)

        self.tell(call)
        return await answer

    def tokens_per_second(self) -> float:
        """Tokens drawn in the last seconds, of all requests together."""
        since = time.monotonic() - _RATE_S
        return sum(tokens for when, tokens in list(self._drawn) if when > since) / _RATE_S

    def _work(self) -> None:
        while True:
            resting = self.failure is not None or self._engine.idle
            try:
                call = self._calls.get(block=resting)
            except queue.Empty:
                self._step()
                continue
            if call is None:
                return
            try:
                call()
            except Exception as error:  # of `tell`: it must not end the thread
                _LOG.warning("a call to the engine failed: %s", shown(error))

    def _step(self) -> None:
        try:
            events = self._engine.step()
        except Exception as error:
            _LOG.exception("the engine has failed, and no request can be answered any more")
            self.failure = error
            for request in self._engine.requests:
                self._engine.cancel(request)
            return
        now, drawn = time.monotonic(), sum(event.token is not None for event in events)
        self.tokens += drawn
        self._drawn.append((now, drawn))
        while self._drawn[0][0] < now - _RATE_S:
            self._drawn.popleft()
