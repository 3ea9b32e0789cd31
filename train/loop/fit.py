"""The loop that every kind of training shares: moves data, calls the step, reports, saves, stops when asked."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh

from elastic_jax.errors import ConfigError, DataError, ElasticError
from elastic_jax.settings import settings_dict
from elastic_jax.sharding.rules import replicated
from train.loop.checkpoint import Checkpoints
from train.loop.directory import claim, refuse_changes
from train.loop.distributed import placed, wait_for_all
from train.loop.reporting import MetricLog, TrainingProgress, Values, describe, to_plain
from train.loop.throughput import ProfileWindow, speed
from train.loop.trouble import SKIPPED, Interrupted, Step, StopRequest, dump_batch, not_finite, skipping

CHECKPOINT_FOLDER = "checkpoints"


class TrainingDiverged(ElasticError):
    """A loss or gradient was not finite."""


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
    watched: tuple[str, ...] = ("loss", "grad_norm")
    """Metrics that must be finite."""
    labels: Mapping[str, Sequence[str]] = {}
    """Names of the entries of vector metrics."""
    evaluate: Callable[[Any, Any], Mapping[str, float]] | None = None
    """`evaluate(state, frozen)`, asked every `run.eval_every` steps and at the end."""
    best: str | None = None
    """Figure of `evaluate` whose lowest value marks the best checkpoint (`-name`: its highest)."""
    describe: Callable[[Values], str] = describe
    """The progress line of a step."""
    flops: Callable[[Any, Values], float] | None = None
    """FLOPs of a step over all devices, from its batch and metrics."""
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
        DataError: the data set differs from the one that the run began with.
        Interrupted: SIGTERM or SIGINT; the finished steps are saved.
        TrainingDiverged: more watched metrics were not finite than `run.nan_policy` allows; the metrics and the batch
            of that step are written, its state is not.
    """
    run = job.config.run
    if run.eval_every and job.evaluate is None:
        raise ConfigError(f"run.eval_every is {run.eval_every}, but this run has nothing to evaluate. Set it to 0.")
    with claim(directory, job.config):
        return _fit(job, directory)


def _fit(job: Job, directory: Path) -> Any:
    config, run, state = job.config, job.config.run, job.state
    checkpoints = _checkpoints(job, directory)
    done, skipped, steps = checkpoints.latest_step or 0, 0, config.optim.steps
    if done:
        refuse_changes(directory, checkpoints.settings(), config)
        for leaf in jax.tree.leaves(state):
            if not leaf.is_deleted():
                leaf.delete()  # its shape and place are enough to restore; two states may not fit in memory
        state, position = checkpoints.restore(state)
        if position["digest"] != job.fingerprint:
            raise DataError(f"{directory}: the training data changed since this run began. Restore it or start anew.")
        job.batches.set_state(position["iterator"])
        skipped = position[SKIPPED]

    def due(done: int) -> bool:
        return run.eval_every > 0 and (done % run.eval_every == 0 or done == steps)

    def save() -> None:
        position = {"iterator": job.batches.get_state(), "digest": job.fingerprint, SKIPPED: skipped}
        checkpoints.save(done, state, data=position, settings=settings_dict(config))

    def evaluate() -> None:
        checkpoints.evaluations[done] = job.evaluate(state, job.frozen)  # pyrefly: ignore[not-callable]
        log.write_evaluation(done, checkpoints.evaluations[done])

    step = _compiled(job)
    wait_for_all("first step")
    with (
        closing(checkpoints),
        closing(MetricLog(directory, done, evaluated=done in checkpoints.evaluations, labels=job.labels)) as log,
        closing(ProfileWindow(run.profile, directory / "profile")) as profile,
        nullcontext() if job.mesh is None else jax.set_mesh(job.mesh),
        StopRequest() as stop,
        TrainingProgress(steps, done, job.describe) as progress,
    ):
        if done and due(done) and done not in checkpoints.evaluations:
            evaluate()  # the run was stopped in this step
        while done < steps:
            profile.before(done)
            begin = time.perf_counter()
            batch = next(job.batches)
            on_devices = batch if job.mesh is None else placed(batch, job.batch_shardings)
            state, metrics = step(state, job.frozen, on_devices)
            values = to_plain(metrics)
            seconds = time.perf_counter() - begin
            flops = None if job.flops is None else job.flops(batch, values)
            values |= speed(float(metrics["tokens"]), seconds, flops)
            profile.after(done)
            log.write(done, values)
            if bad := not_finite(values, job.watched):
                skipped += 1
                file = dump_batch(directory, done, batch, bad, values)
                if run.nan_policy == "stop" or skipped > run.nan_limit:
                    raise TrainingDiverged(_advice(done, bad, skipped, file))
            done += 1
            progress.update(done, values)
            asked = stop.agreed(done)
            if due(done) and (asked is None or done == steps):
                evaluate()
            if asked is not None or done in checkpoints.evaluations or done % run.save_every == 0 or done == steps:
                save()
            if asked is not None and done < steps:
                raise Interrupted(
                    f"stopped by {asked.name} after step {done} of {steps}; saved in "
                    f"{directory}. Run the same command again to go on.",
                    128 + asked,
                )
    return state


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
