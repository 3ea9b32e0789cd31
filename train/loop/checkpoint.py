"""Checkpoints of a run: state, data position and settings in one atomic step (Orbax)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax

from elastic_jax.errors import CheckpointError, shown
from elastic_jax.files import parse_json

SETTINGS = "settings"
DATA = "data"
EVALUATIONS = "evaluations"
_DAMAGES = (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, OSError, RuntimeError)
"""What Orbax raises for files that are not as it wrote them."""


class Checkpoints:
    """The numbered checkpoints of a run directory: the newest `keep` and, by one figure of evaluation, the best."""

    def __init__(self, directory: Path, *, keep: int, best: str | None = None):
        """`best` names the figure whose lowest value is kept; `-name` keeps its highest."""
        from orbax.checkpoint import v1 as ocp

        policies = ocp.training.preservation_policies
        policy: Any = policies.LatestN(keep)
        if best is not None:
            policy = policies.AnyPreservationPolicy([policy, self])
        self.directory = directory
        self._best = best
        try:
            self._checkpointer = ocp.training.Checkpointer(
                str(directory.absolute()), preservation_policy=policy, cleanup_tmp_directories=True
            )
        except _DAMAGES as error:
            steps = sorted((path.name for path in directory.iterdir() if path.name.isdigit()), key=int)
            damaged = [step for step in steps if _complaint(directory / step) is not None]
            raise CheckpointError(
                f"{directory}: the checkpoints cannot be opened, as the description of one is damaged (of step "
                f"{' or '.join(damaged or steps)}: {shown(error)}). Remove the folder of that step, and the same "
                "command goes on from the newest of the others."
            ) from error
        self.evaluations: dict[int, Mapping[str, float]] = {} if self.latest_step is None else self._evaluations()
        """Figures of evaluation by steps done, up to the newest checkpoint and since; each save stores them. They are
        not Orbax's metrics of a checkpoint: a run that was stopped in the step of an evaluation has that checkpoint
        before it has its figures."""

    @property
    def latest_step(self) -> int | None:
        """Steps done at the newest complete checkpoint."""
        latest = self._checkpointer.latest
        return None if latest is None else latest.step

    @property
    def best_step(self) -> int | None:
        """Steps done at the best complete checkpoint; None where none was evaluated."""
        return self._lowest([checkpoint.step for checkpoint in self._checkpointer.checkpoints])

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> Sequence[bool]:
        """Orbax's question which checkpoints stay: the best one."""
        lowest = self._lowest([checkpoint.step for checkpoint in checkpoints])
        return [checkpoint.step == lowest for checkpoint in checkpoints]

    def save(self, step: int, state: Any, *, data: dict[str, Any], settings: dict[str, Any]) -> None:
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
                    custom_metadata={
                        DATA: data,
                        SETTINGS: settings,
                        EVALUATIONS: {str(done): dict(figures) for done, figures in self.evaluations.items()},
                    },
                )

    def settings(self) -> dict[str, Any]:
        """The settings that the newest checkpoint was made with."""
        return self._metadata()[SETTINGS]

    def restore(self, like: Any, step: int | None = None) -> tuple[Any, dict[str, Any]]:
        """The newest state, or that of a step, in the shapes and places of `like`, and the data position.

        Raises:
            CheckpointError: the checkpoint is damaged, or its state does not fit.
        """
        step = self._newest() if step is None else step
        target = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), like)
        try:
            state = self._checkpointer.load(step, target)
        except _DAMAGES as error:
            reason = str(error).partition("\n")[0]
            raise self._damaged(step, f"cannot be restored, as it is damaged or of another run: {reason}") from error
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

    def _lowest(self, steps: Sequence[int]) -> int | None:
        """Of these steps the one with the best figure, the first of equals."""
        if self._best is None:
            return None
        name, sign = self._best.removeprefix("-"), -1 if self._best.startswith("-") else 1
        found = [
            (sign * self.evaluations[step].get(name, math.nan), step) for step in steps if step in self.evaluations
        ]
        return min((pair for pair in found if not math.isnan(pair[0])), default=(0, None))[1]

    def _newest(self) -> int:
        step = self.latest_step
        assert step is not None, "asked only where there is a checkpoint"
        return step

    def _metadata(self, step: int | None = None) -> dict[str, Any]:
        """What a checkpoint, by default the newest, says beside its state.

        Raises:
            CheckpointError: the checkpoint is damaged, or was not written by this program.
        """
        step = self._newest() if step is None else step
        if (complaint := _complaint(self.directory / str(step))) is not None:
            raise self._damaged(step, complaint)
        try:
            found = self._checkpointer.metadata(step).custom_metadata
        except _DAMAGES as error:
            raise self._damaged(step, f"is damaged: its description cannot be read ({shown(error)})") from error
        if isinstance(found, dict) and all(isinstance(found.get(part), dict) for part in (SETTINGS, DATA, EVALUATIONS)):
            return found
        raise CheckpointError(f"{self.directory}: checkpoint {step} was not written by this program.")

    def _evaluations(self) -> dict[int, Mapping[str, float]]:
        """The figures that the newest checkpoint holds."""
        stored = self._metadata()[EVALUATIONS]
        try:
            return {
                int(step): {name: float(value) for name, value in figures.items()} for step, figures in stored.items()
            }
        except _DAMAGES as error:
            raise self._damaged(self._newest(), f"is damaged: its evaluations are {shown(stored)}") from error

    def _damaged(self, step: int, complaint: str) -> CheckpointError:
        """The error about a checkpoint, which offers the newest whole one before it."""
        steps = sorted(checkpoint.step for checkpoint in self._checkpointer.checkpoints if checkpoint.step < step)
        whole = [before for before in steps if _complaint(self.directory / str(before)) is None]
        remedy = (
            f"Remove that folder, and the same command goes on from step {whole[-1]}, the newest whole checkpoint."
            if whole
            else "No earlier one is whole: start in a new directory."
        )
        return CheckpointError(f"{self.directory / str(step)}: the checkpoint {complaint}. {remedy}")


def _complaint(folder: Path) -> str | None:
    """What is wrong with a checkpoint's descriptions, which a partial copy or a full disk leaves out or cuts.

    Orbax checks what the arrays hold, but of these files it complains with tracebacks, or not at all.
    """
    for file in (folder / "_CHECKPOINT_METADATA", folder / "state" / "_METADATA"):
        name = file.relative_to(folder)
        try:
            parse_json(file.read_bytes())
        except FileNotFoundError:
            return f"is damaged: {name} is missing"
        except (OSError, ValueError) as error:
            return f"is damaged: {name} is not readable JSON ({error})"
    return None
