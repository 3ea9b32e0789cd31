"""One step of router training through the real TPU compiler, without a TPU."""

from __future__ import annotations

import importlib.util
import os
import re
import time
from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from elastic_jax.config import ModelConfig
from elastic_jax.errors import ConfigError
from elastic_jax.sharding import make_mesh
from elastic_jax.sharding.rules import param_shardings, replicated
from elastic_jax.weights.names import ROUTER_PREFIX
from train.config import RouterTrainConfig
from train.data.packing import Rows
from train.loop.distributed import rows_shardings
from train.plan.chips import Topology
from train.plan.shapes import stored_shapes
from train.router.step import first_state, make_step

COLLECTIVES = r"\b(all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter)(?:-start)?\("
_ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
}
"""What libtpu wants to know on a machine that has no TPU; it does not limit what is compiled for."""


class Compiled(NamedTuple):
    """What the compiler says of one step; bytes on one device."""

    seconds: float
    total: int
    """All that the program reserves in device memory, arguments included."""
    arguments: int
    host: int
    """In the host's memory, for each device."""
    flops: float
    """Of one device, the body of every loop counted once."""
    bytes_accessed: float
    """Likewise, in device memory."""
    collectives: dict[str, int]
    """Operations in the program's text, the body of every loop counted once."""
    refusal: str = ""
    """Why the compiler refused; all numbers are 0 then."""


def tpu_mesh(config: RouterTrainConfig, topology: Topology) -> Mesh:
    """The mesh of a run over TPUs that need not exist.

    Raises:
        ConfigError: not a TPU, no libtpu, or a topology that it does not know.
    """
    if not topology.chip.kind:
        raise ConfigError(f"--compile asks the TPU compiler; {topology.name} is no TPU. Leave it out.")
    if importlib.util.find_spec("libtpu") is None:
        raise ConfigError("--compile needs libtpu: pip install 'elastic-jax[tpu-aot]'.")
    from jax.experimental import topologies

    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    options: dict[str, Any] = {"num_slices": config.mesh.slices}
    if topology.chips == 1:
        options["chips_per_host_bounds"] = (1, 1, 1)
    if topology.generation == "v4":
        options["chip_config_name"] = "megacore"
    try:
        found = topologies.get_topology_desc(platform="tpu", topology_name=topology.name, **options)
    except (RuntimeError, ValueError) as error:
        raise ConfigError(f"the compiler does not know the topology {topology.name}: {_short(error)}") from error
    return make_mesh(config.mesh, found.devices)


def compile_step(model: ModelConfig, config: RouterTrainConfig, mesh: Mesh) -> Compiled:
    """Compiles the optimizer step that `train router` runs with these settings on this mesh."""
    step: Any = make_step(model, config)  # jitted: it can be lowered without running
    operands = step_operands(model, config, mesh)
    begin = time.perf_counter()
    with jax.set_mesh(mesh), TemporaryDirectory() as folder:
        lowered = step.lower(*operands)
        try:
            compiled = lowered.compile(compiler_options={"xla_dump_to": folder})
        except jax.errors.JaxRuntimeError as error:
            return Compiled(time.perf_counter() - begin, 0, 0, 0, 0.0, 0.0, {}, _short(error))
        reserved = _reserved(Path(folder))
    memory, cost = compiled.memory_analysis(), compiled.cost_analysis() or {}
    return Compiled(
        seconds=time.perf_counter() - begin,
        total=reserved or memory.peak_memory_in_bytes,
        arguments=memory.argument_size_in_bytes,
        host=memory.host_temp_size_in_bytes,
        flops=cost.get("flops", 0.0),
        bytes_accessed=cost.get("bytes accessed", 0.0),
        collectives=dict(sorted(Counter(re.findall(COLLECTIVES, compiled.as_text())).items())),
    )


def step_operands(model: ModelConfig, config: RouterTrainConfig, mesh: Mesh) -> tuple[Any, dict[str, Any], Rows]:
    """State, frozen parameters and rows of a step as shapes that know their places."""
    shapes = stored_shapes(model, config.dtype, config.weights)
    places = param_shardings(shapes, mesh)
    params = {path: _placed(x, places[path]) for path, x in shapes.items()}
    frozen = {path: x for path, x in params.items() if not path.startswith(ROUTER_PREFIX)}
    routers = {path: x for path, x in shapes.items() if path.startswith(ROUTER_PREFIX)}
    state = jax.eval_shape(
        lambda: first_state({path: jnp.zeros(x.shape, x.dtype) for path, x in routers.items()}, config)
    )
    A, R, T, M = config.optim.accumulate, config.optim.rows, config.data.row_length, config.data.max_segments
    sizes, types = (T, T, T, T, M, M), (jnp.int32, jnp.int32, jnp.int32, jnp.float32, jnp.int32, jnp.int32)
    rows = Rows(*(jax.ShapeDtypeStruct((A, R, size), kind) for size, kind in zip(sizes, types, strict=True)))
    return (
        jax.tree.map(lambda x: _placed(x, replicated(mesh)), state),
        frozen,
        jax.tree.map(_placed, rows, rows_shardings(mesh, leading=1)),
    )


def _reserved(dump: Path) -> int | None:
    """Bytes of device memory in the compiler's own report. `memory_analysis` does not have that number: its temporaries
    count what shares memory more than once, and its peak holds the host's part and leaves out gaps."""
    for file in dump.glob("*jit_step*memory-usage-report.txt"):
        found = re.search(r"^Memory Space: default .*\nTotal bytes: (\d+)", file.read_text(encoding="utf-8"), re.M)
        if found:
            return int(found[1])
    return None


def _placed(x: jax.ShapeDtypeStruct, sharding: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)


def _short(error: Exception) -> str:
    return re.sub(r"\s+", " ", str(error))[:400]
