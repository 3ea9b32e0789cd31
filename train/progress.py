"""What a watcher of a run sees: a bar with the step's figures and remaining time, or plain lines without a terminal."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType

import jax
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from train.metrics import Values

PLAIN_EVERY = 10


class TrainingProgress:
    """Use as a context manager and call `update` after each step; of several processes, only the first shows it."""

    def __init__(self, steps: int, done: int, describe: Callable[[Values], str]):
        self._describe = describe
        self._console = Console(quiet=jax.process_index() > 0)
        self._steps = steps
        self._bar = Progress(
            TextColumn("step"),
            MofNCompleteColumn(),
            BarColumn(bar_width=20),
            TextColumn("{task.description}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=self._console,
            disable=not self._console.is_terminal,
        )
        self._task = self._bar.add_task("", total=steps, completed=done)

    def __enter__(self) -> TrainingProgress:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def update(self, done: int, values: Values) -> None:
        """Shows the figures of the step that brought the count to `done`."""
        if self._console.quiet:
            return
        text = self._describe(values)
        self._bar.update(self._task, completed=done, description=text)
        if not self._console.is_terminal and (done % PLAIN_EVERY == 0 or done in (1, self._steps)):
            print(f"step {done}/{self._steps}  {text}", flush=True)


class CountProgress:
    """A bar for work that has a number of equal parts; use as a context manager and call `update` with the count."""

    def __init__(self, label: str, total: int):
        self._console = Console()
        self._label, self._total = label, total
        self._bar = Progress(
            TextColumn(label),
            MofNCompleteColumn(),
            BarColumn(bar_width=20),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=self._console,
            disable=not self._console.is_terminal,
        )
        self._task = self._bar.add_task("", total=total)

    def __enter__(self) -> CountProgress:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def update(self, done: int) -> None:
        self._bar.update(self._task, completed=done)
        if not self._console.is_terminal and (done % max(self._total // PLAIN_EVERY, 1) == 0 or done == self._total):
            print(f"{self._label} {done}/{self._total}", flush=True)


def describe(values: Values) -> str:
    """One line: loss, gradient norm, seconds per step."""
    return f"loss {values['loss']:.4f}  grad {values['grad_norm']:.2g}  {values['seconds']:.1f} s/step"
