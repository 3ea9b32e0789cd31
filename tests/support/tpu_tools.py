"""TPU kernels without a TPU: on the CPU by the interpreter with TPU semantics, and compiled ahead of time for chips."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable
from contextlib import contextmanager
from typing import Any

import jax
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu

from pallas_kernels.tpu import limits

CHIPS = {"v5e": "v5e:1x1", "v5p": "v5p:1x1x1", "v6e": "v6e:1x1", "tpu7x": "tpu7x:1x1x1"}
"""Topology of one chip each."""
KINDS = {name: kind for kind, name in limits.CHIPS.items()}


@contextmanager
def interpreted(widest_tile: int, *, cores: int = 1, detect_races: bool = False):
    """Runs kernels on the CPU with tiles of at most some key blocks: fewer variants to compile, more tiles to stream.

    Copies run as late as they may and unwritten memory is NaN; several cores share the parallel axis of the grid.
    Races are printed as "RACE DETECTED".
    """
    params = pltpu.InterpretParams(num_cores_or_threads=cores, detect_races=detect_races)
    with pytest.MonkeyPatch.context() as patch, pltpu.force_tpu_interpret_mode(params):
        patch.setattr(limits, "WIDEST_TILE", {"forward": widest_tile, "backward": max(1, widest_tile // 2)})
        try:
            yield
        finally:
            pltpu.reset_tpu_interpret_mode_state()


def quick_jit(f: Callable) -> Callable:
    """Compiles without optimisation: interpreted kernels run once."""
    return jax.jit(f, compiler_options={"xla_backend_optimization_level": 0})


def lower_for(chip: str, f: Callable, *shapes: Any):
    """Lowers to Mosaic; needs neither a TPU nor libtpu."""
    device = jax.sharding.AbstractDevice(device_kind=KINDS[chip], num_cores=1, platform="tpu")
    with jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((), (), abstract_device=device)):
        return jax.jit(f).trace(*shapes).lower(lowering_platforms=("tpu",))


def tpu_devices(topology: str, accelerator: str, **options: Any) -> Any:
    """Devices that are not there; skips the test where libtpu is not installed."""
    if importlib.util.find_spec("libtpu") is None:
        pytest.skip("libtpu is not installed; pip install 'elastic-jax[tpu-aot]' to compile for TPU")
    os.environ |= {"TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1", "TPU_WORKER_HOSTNAMES": "localhost"}
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", accelerator)
    from jax.experimental import topologies

    return topologies.get_topology_desc(platform="tpu", topology_name=topology, **options).devices


def compile_for(chip: str, f: Callable, *shapes: Any):
    """Compiles with the TPU compiler; skips the test where libtpu is not installed."""
    device = tpu_devices(CHIPS[chip], "v5litepod-4", chips_per_host_bounds=(1, 1, 1))[0]
    mesh = jax.sharding.Mesh(np.array([device]), ("chip",))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    placed = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), shapes)
    abstract = jax.sharding.AbstractDevice(device_kind=device.device_kind, num_cores=device.num_cores, platform="tpu")
    with jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((), (), abstract_device=abstract)):
        lowered = jax.jit(f).lower(*placed)
    return lowered.compile()
