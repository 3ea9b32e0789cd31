"""Checkpoints of a run: state, data position and settings in one atomic step (Orbax)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax

from elastic_jax.errors import CheckpointError

SETTINGS = "settings"
DATA = "data"


class Checkpoints:
    """The numbered checkpoints of a run directory; the last `keep` stay."""

    def __init__(self, directory: Path, *, keep: int):
        from orbax.checkpoint import v1 as ocp

        self.directory = directory
        self._checkpointer = ocp.training.Checkpointer(
            str(directory.absolute()),
            preservation_policy=ocp.training.preservation_policies.LatestN(keep),  # pyrefly: ignore[bad-argument-type]
            cleanup_tmp_directories=True,
        )

    @property
    def latest_step(self) -> int | None:
        """Steps done at the newest complete checkpoint."""
        latest = self._checkpointer.latest
        return None if latest is None else latest.step

    def save(self, step: int, state: Any, *, data: dict[str, Any], settings: dict[str, Any]) -> None:
        """Writes one checkpoint; a kill at any moment leaves the earlier ones whole."""
        if self.latest_step != step:
            self._checkpointer.save(step, state, custom_metadata={DATA: data, SETTINGS: settings})

    def settings(self) -> dict[str, Any]:
        """The settings that the newest checkpoint was made with."""
        return self._metadata()[SETTINGS]

    def restore(self, like: Any) -> tuple[Any, dict[str, Any]]:
        """The newest state, in the shapes and places of `like`, and the data position.

        Raises:
            CheckpointError: the stored state does not fit.
        """
        target = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), like)
        try:
            state = self._checkpointer.load(self.latest_step, target)
        except (ValueError, KeyError, OSError) as error:
            raise CheckpointError(
                f"{self.directory}: checkpoint {self.latest_step} cannot be restored ({error}). "
                "Remove that step to go on from the one before, or start in a new directory."
            ) from error
        return state, self._metadata()[DATA]

    def close(self) -> None:
        """Waits for pending writes."""
        self._checkpointer.close()

    def _metadata(self) -> dict[str, Any]:
        found = self._checkpointer.metadata(self.latest_step).custom_metadata
        if not isinstance(found, dict) or SETTINGS not in found or DATA not in found:
            raise CheckpointError(f"{self.directory}: checkpoint {self.latest_step} was not written by this program.")
        return found
