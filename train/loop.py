"""The loop that every kind of training shares: moves data, calls the step, reports, saves, stops when asked."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from elastic_jax.errors import DataError, ElasticError
from elastic_jax.settings import settings_dict
from train.checkpoint import Checkpoints
from train.interrupt import Interrupted, StopRequest
from train.metrics import MetricLog, Values, to_plain
from train.progress import TrainingProgress, describe
from train.run_directory import claim, refuse_changes

CHECKPOINT_FOLDER = "checkpoints"


class TrainingDiverged(ElasticError):
    """A loss or gradient was not finite."""


class Job(NamedTuple):
    """What one kind of training brings to the loop."""

    config: Any
    """Settings with `run` (`RunConfig`) and `optim.steps`; a run that goes on must have the same."""
    state: Any
    """State before the first step, placed on its devices; the step consumes it."""
    step: Callable[[Any, Any, Any], tuple[Any, Mapping[str, Any]]]
    """Jitted `step(state, frozen, batch) -> (state, metrics)`; metrics are scalars or vectors, `tokens` among them."""
    frozen: Any
    """Arrays that do not change."""
    batches: Any
    """Endless iterator with `get_state()` and `set_state()`."""
    fingerprint: str
    """Digest of the data set."""
    watched: tuple[str, ...] = ("loss", "grad_norm")
    """Metrics that must be finite."""
    labels: Mapping[str, Sequence[str]] = {}
    """Names of the entries of vector metrics."""
    describe: Callable[[Values], str] = describe
    """The progress line of a step."""


def fit(job: Job, directory: Path) -> Any:
    """Trains in `directory`, going on from its newest checkpoint if there is one, and returns the last state.

    The same settings, data and machine give the same state to the last bit on CPU, however often the run is
    interrupted.

    Raises:
        ConfigError, CheckpointError: the directory belongs to another run.
        DataError: the data set differs from the one that the run began with.
        Interrupted: SIGTERM or SIGINT; the finished steps are saved.
        TrainingDiverged: a watched metric is not finite; the metrics of that step are written, its state is not.
    """
    config, state = job.config, job.state
    claim(directory, config)
    checkpoints = Checkpoints(directory / CHECKPOINT_FOLDER, keep=config.run.keep)
    done = checkpoints.latest_step or 0
    if done:
        refuse_changes(directory, checkpoints.settings(), config)
        state, position = checkpoints.restore(state)
        if position["digest"] != job.fingerprint:
            raise DataError(f"{directory}: the training data changed since this run began. Restore it or start anew.")
        job.batches.set_state(position["iterator"])

    def save() -> None:
        position = {"iterator": job.batches.get_state(), "digest": job.fingerprint}
        checkpoints.save(done, state, data=position, settings=settings_dict(config))

    steps = config.optim.steps
    log = MetricLog(directory, first_step=done, labels=job.labels)
    try:
        with StopRequest() as stop, TrainingProgress(steps, done, job.describe) as progress:
            while done < steps:
                begin = time.perf_counter()
                state, metrics = job.step(state, job.frozen, next(job.batches))
                values = to_plain(metrics) | _speed(int(metrics["tokens"]), time.perf_counter() - begin)
                log.write(done, values)
                _check_finite(done, values, job.watched, directory)
                done += 1
                progress.update(done, values)
                if stop.signal is not None or done % config.run.save_every == 0 or done == steps:
                    save()
                if stop.signal is not None and done < steps:
                    raise Interrupted(
                        f"stopped by {stop.signal.name} after step {done} of {steps}; saved in "
                        f"{directory}. Run the same command again to go on.",
                        128 + stop.signal,
                    )
    finally:
        log.close()
        checkpoints.close()
    return state


def has_checkpoint(directory: Path) -> bool:
    """Whether `fit` would go on with an earlier run."""
    folder = directory / CHECKPOINT_FOLDER
    return folder.is_dir() and any(path.name.isdigit() for path in folder.iterdir())


def _speed(tokens: int, seconds: float) -> dict[str, float]:
    return {"seconds": seconds, "tokens_per_second": tokens / seconds}


def _check_finite(step: int, values: Values, watched: Sequence[str], directory: Path) -> None:
    bad = [name for name in watched if not np.isfinite(values[name]).all()]
    if bad:
        raise TrainingDiverged(
            f"{', '.join(bad)} not finite at step {step}. The metrics are in {directory}, the last checkpoint is from "
            "before. Lower optim.learning_rate or optim.clip in a new run."
        )
