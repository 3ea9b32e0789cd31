"""Where metrics go: a JSON-lines file, TensorBoard events and the progress line."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

METRICS_FILE = "metrics.jsonl"
Values = Mapping[str, float | list[float]]


def to_plain(metrics: Mapping[str, object]) -> dict[str, float | list[float]]:
    """Device metrics as numbers and, for vectors, lists."""
    return {name: np.asarray(value, np.float64).tolist() for name, value in metrics.items()}


class MetricLog:
    """Appends one line and one set of TensorBoard scalars for each step."""

    def __init__(self, directory: Path, *, first_step: int, labels: Mapping[str, Sequence[str]]):
        """`labels` names the entries of vector metrics.

        Lines of steps from `first_step` on, left by a run that was killed after its last checkpoint, are dropped.
        """
        from tensorboardX import SummaryWriter

        path = directory / METRICS_FILE
        kept = []
        if path.is_file():
            kept = [line for line in path.read_text().splitlines() if _step_of(line) < first_step]
        path.write_text("".join(line + "\n" for line in kept))
        self._file = path.open("a")
        self._labels = labels
        self._board = SummaryWriter(str(directory / "tensorboard"), purge_step=first_step)

    def write(self, step: int, values: Values) -> None:
        """Records a step; a value that is not finite is written as null."""
        clean = {name: _finite(value) for name, value in values.items()}
        self._file.write(json.dumps({"step": step, **clean}) + "\n")
        self._file.flush()
        for name, value in values.items():
            if isinstance(value, list):
                labels = self._labels.get(name, range(len(value)))
                for label, item in zip(labels, value, strict=True):
                    if math.isfinite(item):
                        self._board.add_scalar(f"{name}/{label}", item, step)
            elif math.isfinite(value):
                self._board.add_scalar(name, value, step)

    def close(self) -> None:
        self._file.close()
        self._board.close()


def _step_of(line: str) -> float:
    """Step of a line; a line cut short by a kill belongs to no step that is kept."""
    try:
        return json.loads(line)["step"]
    except (json.JSONDecodeError, KeyError, TypeError):
        return math.inf


def _finite(value: float | list[float]) -> float | list[float | None] | None:
    if isinstance(value, list):
        return [item if math.isfinite(item) else None for item in value]
    return value if math.isfinite(value) else None
