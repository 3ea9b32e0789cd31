"""The smallest job for the training loop: a linear fit.

As a script it takes a run directory and overrides of `ToyConfig`, and from the environment what shall go wrong:
`TOY_SIGNAL` `TERM:3`, a signal to itself as it asks for batch 3; `TOY_FULL` `4`, no file may grow beyond 64 KiB from
batch 4 on; `TOY_PAUSE` `0.1`, seconds before every batch.
"""

import os
import resource
import signal
import sys
import time
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from overridden import overridden

from elastic_jax.errors import ElasticError
from elastic_jax.sharding import MeshConfig
from elastic_jax.sharding.rules import batch_sharding, replicated
from train.loop.distributed import placed, run_mesh, start
from train.loop.fit import Job, fit
from train.run_config import DistributedConfig, RunConfig

WIDTH = 16
ROWS = 8


@dataclass(frozen=True)
class ToyOptim:
    steps: int = 8
    rate: float = 0.1


@dataclass(frozen=True)
class ToyConfig:
    optim: ToyOptim = field(default_factory=ToyOptim)
    mesh: MeshConfig = field(default_factory=MeshConfig)
    distributed: DistributedConfig = field(default_factory=DistributedConfig)
    run: RunConfig = field(default_factory=lambda: RunConfig(save_every=3))
    ballast: int = 1
    """Numbers of state that are only stored."""
    poison: tuple[int, ...] = ()
    """Batches that hold an infinite number."""


class Batches:
    """Batch number i follows from i."""

    def __init__(self, config: ToyConfig):
        self.config, self.number = config, 0

    def __next__(self):
        name, _, number = os.environ.get("TOY_SIGNAL", "").partition(":")
        if name and self.number == int(number):
            os.kill(os.getpid(), getattr(signal, f"SIG{name}"))
        time.sleep(float(os.environ.get("TOY_PAUSE", 0)))
        if self.number == int(os.environ.get("TOY_FULL", -1)):
            resource.setrlimit(resource.RLIMIT_FSIZE, (2**16, resource.RLIM_INFINITY))
        x = np.random.default_rng(self.number).normal(size=(1, ROWS, WIDTH)).astype(np.float32)
        if self.number in self.config.poison:
            x[0, 0, 0] = np.inf
        self.number += 1
        return {"x": x, "number": np.full((1, ROWS), self.number - 1)}

    def get_state(self):
        return {"number": self.number}

    def set_state(self, state):
        self.number = state["number"]


@partial(jax.jit, donate_argnums=0)
def step(state, frozen, batch):
    def loss_of(w):
        return ((batch["x"][0] @ w - frozen["goal"]) ** 2).mean()

    loss, slope = jax.value_and_grad(loss_of)(state["w"])
    new = {"w": state["w"] - 0.1 * slope, "count": state["count"] + 1, "ballast": state["ballast"] + 1}
    return new, {"loss": loss, "grad_norm": jnp.linalg.norm(slope), "tokens": batch["x"].size, "sizes": slope[:2]}


def toy_job(config: ToyConfig, **changes) -> Job:
    ballast = jax.random.normal(jax.random.key(0), (config.ballast,))
    state = {"w": jnp.zeros(WIDTH), "count": jnp.int32(0), "ballast": ballast}
    job = Job(config, state, step, {"goal": jnp.ones(())}, Batches(config), "toy data", labels={"sizes": ("a", "b")})
    mesh = run_mesh(config.mesh)
    if mesh is not None:
        rows = {"x": batch_sharding(mesh, leading=1, tokens=False), "number": batch_sharding(mesh, leading=1)}
        state, frozen = (placed(tree, replicated(mesh)) for tree in (state, job.frozen))
        job = job._replace(state=state, frozen=frozen, mesh=mesh, batch_shardings=rows)
    return job._replace(**changes)


def main(directory: str, *overrides: str) -> int:
    config = overridden(ToyConfig, None, overrides)
    start(config.distributed, config.run)
    try:
        fit(toy_job(config), Path(directory))
    except ElasticError as error:
        print(error, file=sys.stderr)
        return getattr(error, "exit_code", 2)
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
