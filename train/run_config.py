"""Settings that every kind of training shares: the run directory, the loop, the processes."""

from __future__ import annotations

import datetime
from dataclasses import dataclass
from typing import Literal

from elastic_jax.errors import ConfigError
from elastic_jax.settings import FilePath, check_least, check_seed


@dataclass(frozen=True)
class RunConfig:
    """Where the run is kept, how often it reports, and what it does when figures are not finite."""

    directory: FilePath | None = None
    """Run directory: settings, checkpoints, metrics, TensorBoard events and, at the end, what was trained. Several
    processes need one that all of them see."""
    seed: int = 0
    """Seed of the data, the first weights and the gates."""
    save_every: int = 50
    """Steps between checkpoints."""
    keep: int = 2
    """Newest checkpoints kept; the best one by evaluation is kept as well."""
    eval_every: int = 0
    """Steps between evaluations, each of which saves a checkpoint; 0 for none."""
    export: tuple[Literal["router", "elastic", "hf"], ...] = ("router",)
    """Formats written to `DIRECTORY/FORMAT` at the end."""
    nan_policy: Literal["stop", "skip"] = "stop"
    """At a step whose loss or gradient is not finite: `stop` the run, or `skip` its update and go on. Either way the
    batch is written to `DIRECTORY/nonfinite`."""
    nan_limit: int = 10
    """Steps that `skip` may leave out in the whole run before it stops."""
    profile: tuple[int, int] | None = None
    """First and last step (from 0) of a profile for TensorBoard or Perfetto, written to `DIRECTORY/profile`."""
    compile_cache: FilePath | None = None
    """Folder where compiled programs are kept from run to run."""
    date: str | None = None
    """Date (YYYY-MM-DD) for chat templates that write one; unset for the day on which the run begins, which it keeps
    when it goes on."""

    def __post_init__(self) -> None:
        check_least(self, 1, "save_every", "keep")
        check_least(self, 0, "eval_every", "nan_limit")
        if self.profile is not None and not 0 <= self.profile[0] <= self.profile[1]:
            raise ConfigError(f"profile {list(self.profile)}: want 0 <= first step <= last step.")
        check_seed(self.seed, bits=63)
        try:
            datetime.date.fromisoformat(self.date or "2000-01-01")
        except ValueError:
            raise ConfigError(f"date is {self.date!r}; want a day as YYYY-MM-DD.") from None


@dataclass(frozen=True)
class DistributedConfig:
    """The processes of a run on several hosts; each of them runs the same command."""

    coordinator: str | None = None
    """Address HOST:PORT of process 0, or `auto` where JAX finds the processes itself (Cloud TPU, GKE, Slurm, Open MPI).
    Without it there is one process."""
    processes: int | None = None
    """Number of processes; not with `auto`."""
    process: int | None = None
    """Number of this process, from 0; not with `auto`."""

    def __post_init__(self) -> None:
        counted = self.processes is not None, self.process is not None
        if self.coordinator in (None, "auto"):
            if any(counted):
                raise ConfigError(
                    f"distributed.processes {self.processes} and distributed.process {self.process} are for a "
                    f"coordinator HOST:PORT; it is {self.coordinator!r}. Give distributed.coordinator, or neither."
                )
        elif not all(counted) or not 0 <= self.process < self.processes:  # pyrefly: ignore[unsupported-operation]
            raise ConfigError(
                f"distributed.processes is {self.processes}, distributed.process {self.process}: with a coordinator "
                "want both, and 0 <= process < processes."
            )
