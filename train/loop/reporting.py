"""Where metrics go: a JSON-lines file, TensorBoard events and the progress line.

The progress line is a bar with the step's figures and the remaining time, or plain lines without a terminal.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Self, TextIO

import jax
import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from elastic_jax.files import parse_json, write_text, writing

METRICS_FILE = "metrics.jsonl"
EVALUATION_FILE = "evaluation.jsonl"
Values = Mapping[str, float | list[float]]


def to_plain(metrics: Mapping[str, object]) -> dict[str, float | list[float]]:
    """Device metrics as numbers and, for vectors, lists."""
    return {name: np.asarray(value, np.float64).tolist() for name, value in metrics.items()}


class MetricLog:
    """Appends lines and TensorBoard scalars for steps and evaluations; of several processes, only the first writes."""

    def __init__(self, directory: Path, first_step: int, *, evaluated: bool, labels: Mapping[str, Sequence[str]]):
        """`labels` names the entries of vector metrics; `evaluated`: the checkpoint of `first_step` has its figures.

        Lines of steps from `first_step` on, left by a run that was killed after its last checkpoint, are dropped, and
        so are evaluations that the checkpoint does not know.
        """
        self._labels = labels
        self._active = jax.process_index() == 0
        if not self._active:
            return
        from tensorboardX import SummaryWriter

        self._steps = _reopened(directory / METRICS_FILE, first_step)
        self._evaluations = _reopened(directory / EVALUATION_FILE, first_step + evaluated)
        self._board = SummaryWriter(str(directory / "tensorboard"), purge_step=first_step)

    def write(self, step: int, values: Values) -> None:
        """Records a step; a value that is not finite is written as null."""
        if self._active:
            self._write(self._steps, step, values, "")

    def write_evaluation(self, done: int, values: Mapping[str, float]) -> None:
        """Records an evaluation after `done` steps."""
        if self._active:
            self._write(self._evaluations, done, values, "evaluation/")

    def close(self) -> None:
        if self._active:
            for file in (self._steps, self._evaluations):
                with suppress(OSError):  # of a write that failed, which has said so
                    file.close()
            self._board.close()

    def _write(self, file: TextIO, step: int, values: Values, prefix: str) -> None:
        clean = {name: _finite(value) for name, value in values.items()}
        with writing(Path(file.name)):
            file.write(json.dumps({"step": step, **clean}) + "\n")
            file.flush()
        for name, value in values.items():
            if isinstance(value, list):
                labels = self._labels.get(name, range(len(value)))
                for label, item in zip(labels, value, strict=True):
                    if math.isfinite(item):
                        self._board.add_scalar(f"{prefix}{name}/{label}", item, step)
            elif math.isfinite(value):
                self._board.add_scalar(f"{prefix}{name}", value, step)


def _reopened(path: Path, end: int) -> TextIO:
    """The file with its lines of steps below `end`, open for more."""
    kept = []
    if path.is_file():
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
        kept = [line for line in lines if _step_of(line) < end]
    write_text(path, "".join(line + "\n" for line in kept))
    return path.open("a", encoding="utf-8")


def _step_of(line: str) -> float:
    """Step of a line; a line cut short by a kill belongs to no step that is kept."""
    try:
        return float(parse_json(line)["step"])
    except (ValueError, KeyError, TypeError, OverflowError):
        return math.inf


def _finite(value: float | list[float]) -> float | list[float | None] | None:
    if isinstance(value, list):
        return [item if math.isfinite(item) else None for item in value]
    return value if math.isfinite(value) else None


PLAIN_EVERY = 10
"""Without a terminal: steps of training for each line, or lines for all of another work."""


class CountProgress:
    """A bar for work of `total` equal parts, or plain lines where there is no terminal.

    Use as a context manager and call `update` with the number of parts done.
    """

    def __init__(self, label: str, total: int, *, done: int = 0, quiet: bool = False):
        self._console = Console(quiet=quiet)
        self._label, self._total = label, total
        self._bar = Progress(
            TextColumn(label),
            MofNCompleteColumn(),
            BarColumn(bar_width=20),
            TextColumn("{task.description}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=self._console,
            disable=not self._console.is_terminal,
        )
        self._task = self._bar.add_task("", total=total, completed=done)

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def update(self, done: int, text: str = "") -> None:
        """Shows that `done` parts are done, with a text about the last of them."""
        self._bar.update(self._task, completed=done, description=text)
        if not self._console.is_terminal and not self._console.quiet and self._has_line(done):
            print(f"{self._label} {done}/{self._total}  {text}".rstrip(), flush=True)

    def _has_line(self, done: int) -> bool:
        return done % max(self._total // PLAIN_EVERY, 1) == 0 or done == self._total


class TrainingProgress(CountProgress):
    """The steps of a training run; of several processes, only the first shows them."""

    def __init__(self, steps: int, done: int):
        super().__init__("step", steps, done=done, quiet=jax.process_index() > 0)

    def _has_line(self, done: int) -> bool:
        return done % PLAIN_EVERY == 0 or done in (1, self._total)


def step_line(values: Values) -> str:
    """One line: loss, gradient norm, seconds per step."""
    return f"loss {values['loss']:.4f}  grad {values['grad_norm']:.2g}  {values['seconds']:.1f} s/step"
