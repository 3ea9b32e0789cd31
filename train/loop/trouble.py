"""SIGTERM and Ctrl-C as a request that the training loop answers between steps.

Steps whose figures are not finite: they are found, left out of the state if the settings say so, and their batches are
written to files.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from elastic_jax.errors import ElasticError
from elastic_jax.files import atomic_file, write_json
from train.loop.distributed import is_main
from train.loop.reporting import Values


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

    def __exit__(self, *_: object) -> None:
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


FOLDER = "nonfinite"
SKIPPED = "skipped"
"""Metric: 1 where a step was left out, else 0."""

Step = Callable[[Any, Any, Any], tuple[Any, Mapping[str, Any]]]


def skipping(step: Step, watched: Sequence[str]) -> Step:
    """`step`, but it returns the old state if a watched metric or the new state is not finite.

    Counters in the state keep their old values too, so the learning rate does not move on.
    """

    def guarded(state: Any, frozen: Any, batch: Any) -> tuple[Any, dict[str, Any]]:
        new, metrics = step(state, frozen, batch)
        leaves = [leaf for leaf in jax.tree.leaves(new) if jnp.issubdtype(leaf.dtype, jnp.inexact)]
        checks = [jnp.isfinite(array).all() for array in [*(metrics[name] for name in watched), *leaves]]
        finite = jnp.stack(checks).all()
        kept = jax.tree.map(lambda after, before: jnp.where(finite, after, before), new, state)
        return kept, {**metrics, SKIPPED: 1 - finite.astype(jnp.int32)}

    return guarded


def not_finite(values: Values, watched: Sequence[str]) -> list[str]:
    """Names of the watched figures that are not finite; `state` where only the new state was not."""
    bad = [name for name in watched if not np.isfinite(values[name]).all()]
    return bad or (["state"] if values.get(SKIPPED) else [])


def dump_batch(directory: Path, step: int, batch: Any, bad: Sequence[str], values: Values) -> Path:
    """Writes the whole batch of a step (`.safetensors`) and its figures (`.json`); of several processes, the first."""
    from safetensors.numpy import save_file

    file = directory / FOLDER / f"step_{step:06d}.safetensors"
    if is_main():
        file.parent.mkdir(exist_ok=True)
        named = jax.tree_util.tree_flatten_with_path(batch)[0]
        with atomic_file(file) as partial:
            save_file({jax.tree_util.keystr(path, simple=True): np.asarray(leaf) for path, leaf in named}, partial)
        figures = {name: str(value) for name, value in values.items()}
        write_json(file.with_suffix(".json"), {"step": step, "not finite": list(bad), "figures": figures})
    return file
