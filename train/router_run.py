"""A router training run from model and samples to exported routers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from elastic_jax.config import ModelConfig
from elastic_jax.extras import Extras
from elastic_jax.model import ElasticForCausalLM, from_params
from train.config import RouterTrainConfig
from train.data.packing import Sample
from train.data.pipeline import make_pipeline
from train.data.records import TASKS
from train.dataset import digest
from train.loop import Job, fit, has_checkpoint
from train.metrics import Values
from train.router import TrainState, first_state, fresh_routers, make_step, split_params
from train.run_directory import claim
from train.warm_loop import warm_routers

WATCHED = ("loss", "lm_loss", "sparsity_loss", "grad_norm")
BY_TASK = (
    "msr",
    "msr_argmax",
    "nll",
    "multiplier_below",
    "multiplier_above",
    "multiplier_linear",
    "multiplier_quadratic",
)
TASK_LETTERS = ("S", "M", "U", "C", "I")
"""Single QA, MultiHop QA, sUmmarization, Code, In-context."""


def train_router(config: RouterTrainConfig, model: ElasticForCausalLM, samples: list[Sample], directory: Path) -> None:
    """Trains routers in `directory` by `train.loop.fit`, whose errors it raises, and exports them."""
    claim(directory, config)
    model_config = replace(model.config, router=config.router)
    router, frozen = split_params(model)
    if config.init is None:
        router = fresh_routers(model_config, config.gates, seed=config.run.seed)
    fingerprint = digest(samples)
    if config.warm_start.rows and not has_checkpoint(directory):
        rows = iter(_pipeline(config, samples))
        router = warm_routers(router, frozen, model_config, config, rows, directory, fingerprint=fingerprint)
    job = Job(
        config=config,
        state=first_state(jax.tree.map(jnp.array, router), config),
        step=make_step(model_config, config),
        frozen=frozen,
        batches=iter(_pipeline(config, samples)),
        fingerprint=fingerprint,
        watched=WATCHED,
        labels=dict.fromkeys(BY_TASK, TASKS),
        describe=describe,
    )
    state = fit(job, directory)
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


def describe(values: Values) -> str:
    """One line: losses, share of sparse heads by task (as sampled), seconds per step."""
    share = values["msr"]
    assert isinstance(share, list)
    shares = " ".join(
        f"{letter} {value:.2f}" for letter, value in zip(TASK_LETTERS, share, strict=True) if math.isfinite(value)
    )
    return (
        f"loss {values['loss']:.3f}  lm {values['lm_loss']:.3f}  sparse {shares}  "
        f"grad {values['grad_norm']:.2g}  {values['seconds']:.1f} s/step"
    )


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
