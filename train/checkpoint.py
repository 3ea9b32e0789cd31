"""Checkpoints of a run: state, data position and settings in one atomic step (Orbax)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax

from elastic_jax.errors import CheckpointError

SETTINGS = "settings"
DATA = "data"


class Checkpoints:
    """The numbered checkpoints of a run directory: the newest `keep` and, by one figure of evaluation, the best."""

    def __init__(self, directory: Path, *, keep: int, best: str | None = None):
        """`best` names the figure whose lowest value is kept; `-name` keeps its highest."""
        from orbax.checkpoint import v1 as ocp

        policies = ocp.training.preservation_policies
        policy: Any = policies.LatestN(keep)
        if best is not None:
            name = best.removeprefix("-")
            lowest = policies.BestN(
                get_metric_fn=lambda figures: figures[name],
                reverse=not best.startswith("-"),
                n=1,
                keep_checkpoints_without_metrics=False,
            )
            policy = policies.AnyPreservationPolicy([policy, lowest])
        self.directory = directory
        self._best = best
        self._checkpointer = ocp.training.Checkpointer(
            str(directory.absolute()), preservation_policy=policy, cleanup_tmp_directories=True
        )

    @property
    def latest_step(self) -> int | None:
        """Steps done at the newest complete checkpoint."""
        latest = self._checkpointer.latest
        return None if latest is None else latest.step

    @property
    def best_step(self) -> int | None:
        """Steps done at the best complete checkpoint; None where none was evaluated."""
        if self._best is None:
            return None
        name, sign = self._best.removeprefix("-"), -1 if self._best.startswith("-") else 1
        evaluated: Any = [checkpoint for checkpoint in self._checkpointer.checkpoints if checkpoint.metrics]
        found = [(sign * checkpoint.metrics[name], checkpoint.step) for checkpoint in evaluated]
        return min(found)[1] if found else None

    def save(
        self,
        step: int,
        state: Any,
        *,
        data: dict[str, Any],
        settings: dict[str, Any],
        figures: Mapping[str, float] | None = None,
    ) -> None:
        """Copies the state and writes it in the background; a kill at any moment leaves the earlier ones whole.

        Waits for the write before it, if that is not done.

        Raises:
            CheckpointError: this or the earlier write failed.
        """
        if self.latest_step != step:
            with self._reported():
                self._checkpointer.save_async(
                    step,
                    state,
                    force=True,
                    metrics=None if figures is None else dict(figures),
                    custom_metadata={DATA: data, SETTINGS: settings},
                )

    def settings(self) -> dict[str, Any]:
        """The settings that the newest checkpoint was made with."""
        return self._metadata()[SETTINGS]

    def restore(self, like: Any, step: int | None = None) -> tuple[Any, dict[str, Any]]:
        """The newest state, or that of a step, in the shapes and places of `like`, and the data position.

        Raises:
            CheckpointError: the stored state does not fit.
        """
        step = self.latest_step if step is None else step
        target = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), like)
        try:
            state = self._checkpointer.load(step, target)
        except (ValueError, KeyError, OSError) as error:
            raise CheckpointError(
                f"{self.directory}: checkpoint {step} cannot be restored ({error}). "
                "Remove that step to go on from the one before, or start in a new directory."
            ) from error
        return state, self._metadata(step)[DATA]

    def close(self) -> None:
        """Waits for pending writes.

        Raises:
            CheckpointError: one failed.
        """
        with self._reported():
            self._checkpointer.close()

    @contextmanager
    def _reported(self) -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError, RuntimeError) as error:
            raise CheckpointError(
                f"{self.directory}: a checkpoint could not be written ({error}). The earlier ones are whole; make room "
                "and run the same command again."
            ) from error

    def _metadata(self, step: int | None = None) -> dict[str, Any]:
        step = self.latest_step if step is None else step
        found = self._checkpointer.metadata(step).custom_metadata
        if not isinstance(found, dict) or SETTINGS not in found or DATA not in found:
            raise CheckpointError(f"{self.directory}: checkpoint {step} was not written by this program.")
        return found
