"""SIGTERM and Ctrl-C as a request that the training loop answers between steps."""

from __future__ import annotations

import signal
from types import FrameType, TracebackType

import jax

from elastic_jax.errors import ElasticError


class Interrupted(ElasticError):
    """Training stopped at a signal, after saving."""

    def __init__(self, message: str, exit_code: int):
        super().__init__(message)
        self.exit_code = exit_code


class StopRequest:
    """While active, the first SIGTERM or SIGINT is noted in `signal`; a second one acts as it always does.

    With several processes, JAX's preemption service catches SIGTERM on any of them, and `agreed` is true on all of them
    at the same step.
    """

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self._previous: dict[int, object] = {}

    def __enter__(self) -> StopRequest:
        if jax.process_count() == 1:
            for number in (signal.SIGTERM, signal.SIGINT):
                self._previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._restore()

    def agreed(self, step: int) -> signal.Signals | None:
        """The signal, if all processes are to stop after this step; every process must ask after every step."""
        if jax.process_count() > 1:
            from jax.experimental import multihost_utils

            if multihost_utils.reached_preemption_sync_point(step):
                self.signal = signal.SIGTERM
        return self.signal

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.signal = signal.Signals(number)
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # pyrefly: ignore[bad-argument-type]
        self._previous.clear()
