"""The training loop of the router: moves data, calls the step, reports, saves, stops when asked."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from elastic_jax.config import ModelConfig
from elastic_jax.errors import DataError, ElasticError
from elastic_jax.extras import Extras
from elastic_jax.model import ElasticForCausalLM, from_params
from elastic_jax.settings import settings_dict
from train.checkpoint import Checkpoints
from train.config import RouterTrainConfig
from train.data.packing import Sample
from train.data.pipeline import make_pipeline
from train.dataset import digest
from train.interrupt import Interrupted, StopRequest
from train.metrics import MetricLog, Values, to_plain
from train.progress import TrainingProgress
from train.router import TrainState, first_state, fresh_routers, make_step, split_params
from train.run_directory import claim, refuse_changes
from train.warm_loop import warm_routers

CHECKPOINT_FOLDER = "checkpoints"


class TrainingDiverged(ElasticError):
    """A loss or gradient was not finite."""


def train_router(config: RouterTrainConfig, model: ElasticForCausalLM, samples: list[Sample], directory: Path) -> None:
    """Trains routers in `directory`, going on from its newest checkpoint if there is one, and exports them.

    The same settings, data and machine give the same routers to the last bit on CPU, however often the run is
    interrupted.

    Raises:
        ConfigError, CheckpointError: the directory belongs to another run.
        DataError: the data set differs from the one that the run began with.
        Interrupted: SIGTERM or SIGINT; the finished steps are saved.
        TrainingDiverged: a loss or gradient is not finite; the metrics of that step are written, its state is not.
    """
    claim(directory, config)
    model_config = replace(model.config, router=config.router)
    router, frozen = split_params(model)
    if config.init is None:
        router = fresh_routers(model_config, config.gates, seed=config.run.seed)
    fingerprint = digest(samples)
    settings = settings_dict(config)
    checkpoints = Checkpoints(directory / CHECKPOINT_FOLDER, keep=config.run.keep)
    if config.warm_start.rows and checkpoints.latest_step is None:
        rows = iter(_pipeline(config, samples))
        router = warm_routers(router, frozen, model_config, config, rows, directory, fingerprint=fingerprint)
    batches = iter(_pipeline(config, samples))
    state = first_state(jax.tree.map(jnp.array, router), config)
    done = checkpoints.latest_step or 0
    if checkpoints.latest_step is not None:
        refuse_changes(directory, checkpoints.settings(), config)
        state, position = checkpoints.restore(state)
        if position["digest"] != fingerprint:
            raise DataError(f"{directory}: the training data changed since this run began. Restore it or start anew.")
        batches.set_state(position["iterator"])

    def save() -> None:
        position = {"iterator": batches.get_state(), "digest": fingerprint}
        checkpoints.save(done, state, data=position, settings=settings)

    step = make_step(model_config, config)
    log = MetricLog(directory, first_step=done)
    try:
        with StopRequest() as stop, TrainingProgress(config.optim.steps, done) as progress:
            while done < config.optim.steps:
                begin = time.perf_counter()
                state, metrics = step(state, frozen, next(batches))
                values = to_plain(metrics) | _speed(int(metrics["tokens"]), time.perf_counter() - begin)
                log.write(done, values)
                _check_finite(done, values, directory)
                done += 1
                progress.update(done, values)
                if stop.signal is not None or done % config.run.save_every == 0 or done == config.optim.steps:
                    save()
                if stop.signal is not None and done < config.optim.steps:
                    raise Interrupted(
                        f"stopped by {stop.signal.name} after step {done} of {config.optim.steps}; saved in "
                        f"{directory}. Run the same command again to go on.",
                        128 + stop.signal,
                    )
    finally:
        log.close()
        checkpoints.close()
    export(config, model_config, frozen, state, directory, source=model.source)


def export(
    config: RouterTrainConfig,
    model_config: ModelConfig,
    frozen: Mapping[str, jax.Array],
    state: TrainState,
    directory: Path,
    *,
    source: str | None,
) -> None:
    """Writes the trained routers in every format of `run.export`, each to its own folder."""
    from elastic_jax.weights import save_pretrained
    from elastic_jax.weights.elastic import default_extras

    model = from_params(model_config, {**frozen, **state.trainable.router}, source=source)
    if config.sparsity.loss == "official":
        first, second = (np.asarray(state.trainable.multipliers[name]) for name in ("linear", "quadratic"))
        learnt = {"model.sparsity_lambda1_task": first, "model.sparsity_lambda2_task": second}
        model.extras = Extras(default_extras(model_config) | learnt)
    for form in config.run.export:
        save_pretrained(model, directory / form, format=form, overwrite=True)


def _pipeline(config: RouterTrainConfig, samples: list[Sample]) -> Any:
    return make_pipeline(
        samples,
        row_length=config.data.row_length,
        block_size=config.router.block_size,
        max_segments=config.data.max_segments,
        rows=config.optim.rows,
        accumulate=config.optim.accumulate,
        seed=config.run.seed,
    )


def _speed(tokens: int, seconds: float) -> dict[str, float]:
    return {"seconds": seconds, "tokens_per_second": tokens / seconds}


def _check_finite(step: int, values: Values, directory: Path) -> None:
    watched = ("loss", "lm_loss", "sparsity_loss", "grad_norm")
    bad = [name for name in watched if not np.isfinite(values[name])]
    if bad:
        raise TrainingDiverged(
            f"{', '.join(bad)} not finite at step {step}. The metrics are in {directory}, the last checkpoint is from "
            "before. Lower optim.learning_rate or optim.clip in a new run."
        )
