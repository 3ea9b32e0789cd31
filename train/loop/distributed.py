"""Several processes as one run: start, agreement, and where arrays of the whole batch go."""

from __future__ import annotations

import itertools
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from elastic_jax.errors import ConfigError
from elastic_jax.sharding import MeshConfig, make_mesh
from elastic_jax.sharding.rules import batch_sharding
from train.data.packing import Rows
from train.run_config import DistributedConfig, RunConfig

MEETING_TIMEOUT_MS = 30 * 60 * 1000
_MEETINGS = itertools.count()
"""Numbers that make the names of meetings unique."""


def start(config: DistributedConfig, run: RunConfig) -> None:
    """Joins this process to the others and opens the compile cache; call it before anything asks JAX for devices.

    Raises:
        ConfigError: no cluster was found, or the coordinator did not answer.
    """
    if run.compile_cache is not None:
        jax.config.update("jax_compilation_cache_dir", str(Path(run.compile_cache).expanduser().absolute()))
    if config.coordinator is None:
        return
    try:
        if config.coordinator == "auto":
            jax.distributed.initialize()
        else:
            jax.distributed.initialize(config.coordinator, config.processes, config.process)
    except (ValueError, RuntimeError) as error:
        raise ConfigError(
            f"distributed.coordinator {config.coordinator}: {error}. Start the same command on every host; give "
            "coordinator, processes and process where `auto` finds no cluster."
        ) from error


def run_mesh(config: MeshConfig) -> Mesh | None:
    """The mesh of a run; None for one process and a mesh of one, which is the plain program on the default device.

    Raises:
        ConfigError: the mesh does not arrange the devices that there are.
    """
    if jax.process_count() == 1 and all(size == 1 for size in config.given().values()):
        return None
    return make_mesh(config)


def on_mesh(mesh: Mesh | None) -> AbstractContextManager[Any]:
    """Within it, programs are compiled for this mesh; None for the default device."""
    return nullcontext() if mesh is None else jax.set_mesh(mesh)


def check_rows(rows: int, mesh: Mesh) -> None:
    """Raises `ConfigError` for a number of rows that the mesh does not divide."""
    divided = mesh.shape["data"] * mesh.shape["fsdp"]
    if rows % divided:
        raise ConfigError(
            f"optim.rows is {rows}; the mesh divides rows over {divided} devices (data x fsdp). "
            f"Set optim.rows to a multiple of {divided} and optim.accumulate accordingly."
        )


def rows_shardings(mesh: Mesh, *, leading: int) -> Rows:
    """Where packed rows with so many leading axes go: rows over data and fsdp, tokens over context."""
    tokens, few = (batch_sharding(mesh, leading=leading, tokens=tokens) for tokens in (True, False))
    return Rows(tokens, tokens, tokens, tokens, few, few)


def is_main() -> bool:
    """Whether this process writes what only one may write."""
    return jax.process_index() == 0


def wait_for_all(name: str) -> None:
    """Returns when every process has called it; all must make the same calls in the same order.

    Processes wait for the coordinator for up to 30 minutes. (Waiting by a collective of the devices would fail after
    seconds, while one process still compiles.)
    """
    if jax.process_count() > 1:
        from orbax.checkpoint import multihost

        multihost.get_barrier_sync_fn()(key=f"{name} {next(_MEETINGS)}", timeout_ms=MEETING_TIMEOUT_MS)


def placed(tree: Any, shardings: Any) -> Any:
    """Arrays of which every process holds the whole, divided over the mesh; each device reads its part only.

    Args:
        tree: NumPy or jax arrays; those that are already placed as wanted are returned as they are.
        shardings: a tree prefix of `tree`.
    """

    def put(sharding: Any, subtree: Any) -> Any:
        return jax.tree.map(lambda array: _put(array, sharding), subtree)

    return jax.tree.map(put, shardings, tree)


def _put(array: Any, sharding: Any) -> jax.Array:
    if isinstance(array, jax.Array) and array.sharding == sharding:
        return array
    if jax.process_count() == 1:
        return jax.device_put(array, sharding)
    whole = np.asarray(array)
    return jax.make_array_from_callback(whole.shape, sharding, lambda index: whole[index])
