"""The loop that every kind of training shares: moves data, calls the step, reports, saves, stops when asked."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh

from elastic_jax.errors import ConfigError, ElasticError
from elastic_jax.settings import settings_dict
from elastic_jax.sharding.rules import replicated
from train.loop.checkpoint import Checkpoints
from train.loop.directory import claim, refuse_changes
from train.loop.distributed import on_mesh, placed, wait_for_all
from train.loop.inputs import refuse_changed, stored_inputs, weights_digest
from train.loop.reporting import MetricLog, TrainingProgress, Values, step_line, to_plain
from train.loop.throughput import ProfileWindow, speed
from train.loop.trouble import FOLDER, SKIPPED, Interrupted, Step, StopRequest, dump_batch, not_finite, skipping

_LOG = logging.getLogger(__name__)
CHECKPOINT_FOLDER = "checkpoints"


class TrainingDiverged(ElasticError):
    """A loss or gradient was not finite."""


class NothingLearnt(TrainingDiverged):
    """No step of a run had finite figures, so `run.nan_policy` skip left all of them out."""

    exit_code = 4


class Job(NamedTuple):
    """What one kind of training brings to the loop."""

    config: Any
    """Settings with `run` (`RunConfig`) and `optim.steps`; a run that goes on must have the same."""
    state: Any
    """State before the first step, placed on its devices; `fit` consumes it."""
    step: Step
    """Jitted `step(state, frozen, batch) -> (state, metrics)`; metrics are scalars or vectors, `tokens` among them."""
    frozen: Any
    """Arrays that do not change."""
    batches: Any
    """Endless iterator over whole batches of NumPy arrays, with `get_state()` and `set_state()`."""
    fingerprint: str
    """Digest of the data set."""
    inputs: Mapping[str, str] = {}
    """Digests of what else the result depends on, by the name that an error gives it."""
    watched: tuple[str, ...] = ("loss", "grad_norm")
    """Metrics that must be finite."""
    labels: Mapping[str, Sequence[str]] = {}
    """Names of the entries of vector metrics."""
    evaluate: Callable[[Any, Any], Mapping[str, float]] | None = None
    """`evaluate(state, frozen)`, asked every `run.eval_every` steps and at the end."""
    best: str | None = None
    """Figure of `evaluate` whose lowest value marks the best checkpoint (`-name`: its highest)."""
    step_line: Callable[[Values], str] = step_line
    """The progress line of a step."""
    flops: Callable[[Any, Values], float] | None = None
    """`flops(batch, metrics)`: FLOPs of a step over all devices."""
    mesh: Mesh | None = None
    """Mesh of the devices, None for the default device."""
    batch_shardings: Any = None
    """With a mesh: where the arrays of a batch go, as a tree prefix of it."""


def fit(job: Job, directory: Path) -> Any:
    """Trains in `directory`, going on from its newest checkpoint if there is one, and returns the last state.

    The same settings, data and machine give the same state to the last bit on CPU, however often the run is
    interrupted. A checkpoint can be continued on another mesh and another number of processes.

    Raises:
        InUseError: another process trains in the directory.
        ConfigError, CheckpointError: the directory belongs to another run, or a checkpoint cannot be read or written.
        DataError: the data set, or another input, differs from the one that the run began with.
        Interrupted: SIGTERM or SIGINT; the finished steps are saved.
        TrainingDiverged: more watched metrics were not finite than `run.nan_policy` allows; the metrics and the batch
            of that step are written, its state is not.
        NothingLearnt: the run is at its end, and all of its steps were left out.
    """
    run = job.config.run
    if run.eval_every and job.evaluate is None:
        raise ConfigError(f"run.eval_every is {run.eval_every}, but this run has nothing to evaluate. Set it to 0.")
    with claim(directory, job.config):
        return _fit(job, directory)


def _fit(job: Job, directory: Path) -> Any:
    checkpoints = _checkpoints(job, directory)
    run = _Run(job, directory, checkpoints)
    step, steps = _compiled(job), run.steps
    wait_for_all("first step")
    evaluated = run.done in checkpoints.evaluations
    with (
        closing(checkpoints),
        closing(MetricLog(directory, run.done, evaluated=evaluated, labels=job.labels)) as log,
        closing(ProfileWindow(job.config.run.profile, directory / "profile")) as profile,
        on_mesh(job.mesh),
        StopRequest() as stop,
        TrainingProgress(steps, run.done) as progress,
    ):
        if run.done and run.evaluation_due() and not evaluated:
            run.evaluate(log)  # the run was stopped after this step, before its evaluation
        while run.done < steps:
            profile.before(run.done)
            values = run.take_step(step, log)
            profile.after(run.done - 1)
            progress.update(run.done, job.step_line(values))
            asked = stop.agreed(run.done)
            last = run.done == steps
            # A run that is asked to stop saves at once and leaves the evaluation to its next start; so a kill that
            # follows soon does not lose the steps.
            if run.evaluation_due() and (asked is None or last):
                run.evaluate(log)
            if last or asked is not None or run.save_due():
                run.save()
            if asked is not None and not last:
                raise Interrupted(
                    f"stopped by {asked.name} after step {run.done} of {steps}; saved in "
                    f"{directory}. Run the same command again to go on.",
                    128 + asked,
                )
    if run.not_finite >= steps:
        raise NothingLearnt(
            f"{directory}: the figures of all {steps} steps were not finite, so none of them changed anything. Nothing "
            f"was exported; the batches are in {directory / FOLDER}. Look for the first figure that is not finite "
            "there, and lower optim.learning_rate or train in dtype float32 in a new run."
        )
    if run.not_finite:
        _LOG.warning("%s: %d of %d steps were left out, their figures not finite", directory, run.not_finite, steps)
    return run.state


class _Run:
    """A run between two steps: its state, and how many steps are done."""

    def __init__(self, job: Job, directory: Path, checkpoints: Checkpoints):
        """Goes on from the newest checkpoint, if there is one."""
        self.job = job
        self.directory = directory
        self.checkpoints = checkpoints
        self.steps: int = job.config.optim.steps
        self.state = job.state
        self.done = checkpoints.latest_step or 0
        self.not_finite = 0
        """Steps whose figures were not finite."""
        with on_mesh(job.mesh):
            weights = {"frozen weights": weights_digest(job.frozen)}
        self.inputs = stored_inputs(job.fingerprint, {**job.inputs, **weights})
        if self.done:
            self._restore()

    def _restore(self) -> None:
        job = self.job
        refuse_changes(self.directory, self.checkpoints.settings(), job.config)
        for leaf in jax.tree.leaves(job.state):
            if not leaf.is_deleted():
                leaf.delete()  # its shape and place are enough to restore; two states may not fit in memory
        self.state, position = self.checkpoints.restore(job.state)
        refuse_changed(self.directory, position, self.inputs)
        job.batches.set_state(position["iterator"])
        self.not_finite = position[SKIPPED]

    def take_step(self, step: Step, log: MetricLog) -> Values:
        """Trains on the next batch and writes the figures.

        Raises:
            TrainingDiverged: figures are not finite, and `run.nan_policy` does not allow one more such step.
        """
        job, settings = self.job, self.job.config.run
        begin = time.perf_counter()
        batch = next(job.batches)
        on_devices = batch if job.mesh is None else placed(batch, job.batch_shardings)
        self.state, metrics = step(self.state, job.frozen, on_devices)
        values = to_plain(metrics)  # waits for the step to end
        seconds = time.perf_counter() - begin
        flops = None if job.flops is None else job.flops(batch, values)
        values |= speed(float(metrics["tokens"]), seconds, flops)
        log.write(self.done, values)
        if bad := not_finite(values, job.watched):
            self.not_finite += 1
            file = dump_batch(self.directory, self.done, batch, bad, values)
            if settings.nan_policy == "stop" or self.not_finite > settings.nan_limit:
                raise TrainingDiverged(_advice(self.done, bad, self.not_finite, file))
        self.done += 1
        return values

    def evaluation_due(self) -> bool:
        every = self.job.config.run.eval_every
        return every > 0 and (self.done % every == 0 or self.done == self.steps)

    def evaluate(self, log: MetricLog) -> None:
        figures = self.job.evaluate(self.state, self.job.frozen)  # pyrefly: ignore[not-callable]
        self.checkpoints.evaluations[self.done] = figures
        log.write_evaluation(self.done, figures)

    def save_due(self) -> bool:
        return self.done in self.checkpoints.evaluations or self.done % self.job.config.run.save_every == 0

    def save(self) -> None:
        position = {"iterator": self.job.batches.get_state(), SKIPPED: self.not_finite, **self.inputs}
        self.checkpoints.save(self.done, self.state, data=position, settings=settings_dict(self.job.config))


def best_state(job: Job, directory: Path) -> Any:
    """The state of the best checkpoint of a run; the newest where none was evaluated."""
    with closing(_checkpoints(job, directory)) as checkpoints:
        return checkpoints.restore(job.state, checkpoints.best_step)[0]


def has_checkpoint(directory: Path) -> bool:
    """Whether `fit` would go on with an earlier run."""
    folder = directory / CHECKPOINT_FOLDER
    return folder.is_dir() and any(path.name.isdigit() for path in folder.iterdir())


def _checkpoints(job: Job, directory: Path) -> Checkpoints:
    run = job.config.run
    return Checkpoints(directory / CHECKPOINT_FOLDER, keep=run.keep, best=job.best if run.eval_every else None)


def _compiled(job: Job) -> Step:
    """The job's step, guarded as `run.nan_policy` says; with a mesh, the new state stays where the old one was."""
    skip = job.config.run.nan_policy == "skip"
    step = skipping(job.step, job.watched) if skip else job.step
    if job.mesh is not None:
        places = jax.tree.map(lambda leaf: leaf.sharding, job.state), replicated(job.mesh)
        return jax.jit(step, donate_argnums=0, out_shardings=places)
    return jax.jit(step, donate_argnums=0) if skip else step


def _advice(step: int, bad: Sequence[str], times: int, file: Path) -> str:
    often = f" ({times} such steps)" if times > 1 else ""
    return (
        f"{', '.join(bad)} not finite at step {step}{often}. The batch is in {file}, the last checkpoint is from "
        "before. Lower optim.learning_rate or optim.clip in a new run, or go on with run.nan_policy skip."
    )
