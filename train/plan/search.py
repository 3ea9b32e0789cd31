"""Plans: a run on a mesh with its estimate, and the fastest of all meshes that fit."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

from jax.sharding import AbstractMesh

from elastic_jax.config import ModelConfig
from elastic_jax.errors import ConfigError
from elastic_jax.sharding import MeshConfig
from elastic_jax.sharding.mesh import AXES
from train.config import RouterTrainConfig
from train.plan.chips import GIB, Topology
from train.plan.estimate import Memory, Work, step_memory, step_work
from train.plan.shapes import kernel_bytes

FILLED = 0.93
"""Share of the memory that an estimate may fill: the TPU compiler wanted up to 7 % more (`docs/scaling.md`)."""


class RunPlan(NamedTuple):
    """One way to run a training."""

    config: RouterTrainConfig
    mesh: AbstractMesh
    topology: Topology
    memory: Memory
    kernels: dict[str, int]
    """Vector memory of the TPU kernels, see `kernel_bytes`."""
    work: Work

    @property
    def fits(self) -> bool:
        chip = self.topology.chip
        return self.memory.total <= FILLED * chip.memory * GIB and self.memory.host <= chip.host * GIB


def make_plan(model: ModelConfig, config: RouterTrainConfig, topology: Topology, sparse_share: float) -> RunPlan:
    """The plan of a run as its settings say.

    Raises:
        ConfigError: a mesh that does not arrange the devices, or that cannot divide parameters, rows or tokens.
    """
    sizes = config.mesh.sizes(topology.devices * config.mesh.slices)
    rows = sizes["data"] * sizes["fsdp"]
    if config.optim.rows % rows:
        raise ConfigError(
            f"optim.rows is {config.optim.rows}; the mesh divides rows over {rows} devices (data x fsdp). Set "
            f"optim.rows to a multiple of {rows} and optim.accumulate accordingly, or use --search."
        )
    shard = 2 * sizes["context"] * config.router.block_size
    if sizes["context"] > 1 and config.data.row_length % shard:
        raise ConfigError(
            f"data.row_length is {config.data.row_length}; with context {sizes['context']} and blocks of "
            f"{config.router.block_size} want a multiple of {shard}."
        )
    mesh = AbstractMesh(tuple(sizes.values()), AXES)
    return RunPlan(
        config,
        mesh,
        topology,
        step_memory(model, config, mesh),
        kernel_bytes(model, topology.chip, 2 if config.dtype == "bfloat16" else 4),
        step_work(model, config, mesh, topology, sparse_share),
    )


def search(model: ModelConfig, config: RouterTrainConfig, topology: Topology, sparse_share: float) -> list[RunPlan]:
    """All plans that fit, the fastest first; the same batch on every mesh, and layers recomputed or not.

    Heads are not divided further than there are KV heads, whose work would be repeated.
    """
    plans = []
    for candidate in _candidates(model, config, topology):
        try:
            plan = make_plan(model, candidate, topology, sparse_share)
        except ConfigError:
            continue
        if plan.fits:
            plans.append(plan)
    return sorted(plans, key=lambda plan: (plan.work.seconds, plan.memory.total))


def _candidates(model: ModelConfig, config: RouterTrainConfig, topology: Topology) -> Iterator[RouterTrainConfig]:
    devices, slices = topology.devices * config.mesh.slices, config.mesh.slices
    batch = config.optim.rows * config.optim.accumulate
    for tensor in _divisors(model.num_kv_heads):
        for context in _divisors(devices // tensor) if devices % tensor == 0 else ():
            for fsdp in _divisors(devices // tensor // context):
                mesh = MeshConfig(devices // tensor // context // fsdp, fsdp, tensor, context, slices)
                for rows in _divisors(batch):
                    optim = replace(config.optim, rows=rows, accumulate=batch // rows)
                    for remat in (False, True, "offload"):
                        yield replace(config, mesh=mesh, optim=optim, remat=remat)


def _divisors(n: int) -> list[int]:
    return [d for d in range(1, n + 1) if n % d == 0]
