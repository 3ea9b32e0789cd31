"""A router training run from model and samples to exported routers, and the FLOPs of one of its steps."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from elastic_jax.config import ModelConfig
from elastic_jax.errors import ConfigError
from elastic_jax.int8_linear import int8_maps, quantize_layers
from elastic_jax.model import ElasticForCausalLM, Extras, from_params, to_params
from elastic_jax.routing import streaming_skip_ratio
from elastic_jax.sharding.rules import param_shardings, replicated
from elastic_jax.weights.heads import heads_fingerprint
from train.config import RouterTrainConfig
from train.data.dataset import digest, row_shape
from train.data.packing import Rows, Sample, check_sequences
from train.data.pipeline import make_pipeline
from train.data.records import TASKS
from train.loop.directory import claim
from train.loop.distributed import check_rows, is_main, placed, rows_shardings, run_mesh, wait_for_all
from train.loop.fit import Job, best_state, fit, has_checkpoint
from train.loop.reporting import Values
from train.router.evaluation import OBJECTIVE, make_evaluation, split_samples
from train.router.step import RouterState, first_state, fresh_routers, make_step, split_params
from train.router.wanted import wanted_gates
from train.router.warm_loop import warm_routers


def router_step_flops(model: ModelConfig, config: RouterTrainConfig, rows: Rows, values: Values) -> float:
    """FLOPs that one optimizer step needs over all devices; what the program computes twice counts once.

    The backbone is frozen, so each weight counts twice (forward, gradient of its input). Attention counts the causal
    pairs of full heads and, of sparse heads, the pairs of sinks and window; their share is the mean over the step's
    samples of a task. Recomputation (remat) and the other branch of the two-branch attention do not count; padding
    neither.
    """
    D, H, N = model.hidden_size, model.head_dim, model.num_heads
    segment_ids = np.asarray(rows.segment_ids).reshape(-1, rows.segment_ids.shape[-1])
    task_ids = np.asarray(rows.task_ids).reshape(len(segment_ids), -1)
    lengths = (segment_ids[:, None] == np.arange(1, task_ids.shape[1] + 1)[:, None]).sum(-1)
    sparse = np.nan_to_num(np.asarray(values["msr"]))[np.maximum(task_ids, 0)]
    skipped = sparse * np.asarray(streaming_skip_ratio(lengths, model))
    pairs = lengths * (lengths + 1.0) / 2 * (1 - skipped)
    learnt = int((np.asarray(rows.weights) > 0).sum())
    flops = 4 * model.map_weights * lengths.sum() + 12 * H * N * model.num_layers * pairs.sum()
    return config.gates.draws * float(flops + 4 * D * model.vocab_size * learnt)


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
    """Trains routers in `directory` by `train.loop.fit`, whose errors it raises, and exports them.

    With evaluation, the routers of the best checkpoint are exported, else the last ones. With `weights` int8 the layers
    of `model` are made int8 in place, so that no second copy of them exists.

    Raises:
        ConfigError: settings that several processes, this mesh or this model cannot follow.
        DataError: a sample that the model cannot read.
    """
    mesh = run_mesh(config.mesh)
    check_sequences((sample.input_ids for sample in samples), model.config)
    if config.weights == "model" and int8_maps(to_params(model)):
        raise ConfigError("weights is model; the layers of this model are int8 already. Load the model anew.")
    _check_mesh(config, mesh)
    with claim(directory, config):
        _train_and_export(config, model, samples, directory, mesh)


def _train_and_export(
    config: RouterTrainConfig, model: ElasticForCausalLM, samples: list[Sample], directory: Path, mesh: Mesh | None
) -> None:
    model_config = replace(model.config, router=config.router)
    wanted_tLK = None
    if config.init_heads is not None:
        wanted_tLK = wanted_gates(
            Path(config.init_heads), model_config, config.tasks, heads_fingerprint(model), model.source
        )
    if config.weights == "int8":
        quantize_layers(model)
    router, frozen = split_params(model)
    if config.init is None:
        router = fresh_routers(model_config, config.gates, seed=config.run.seed)
    fingerprint = digest(samples)
    inputs = {} if wanted_tLK is None else {"calibrated heads": hashlib.sha256(wanted_tLK.tobytes()).hexdigest()}
    samples, held_out = split_samples(samples, config.data.held_out, config.run.seed)
    if (config.warm_start.rows or config.init_heads) and not has_checkpoint(directory):
        rows = iter(_pipeline(config, samples))
        router = warm_routers(
            router, frozen, model_config, config, rows, directory, fingerprint=fingerprint, wanted_tLK=wanted_tLK
        )
    state = first_state(jax.tree.map(jnp.array, router), config)
    if mesh is not None:
        state = placed(state, replicated(mesh))
        frozen = placed(frozen, param_shardings(frozen, mesh))
    job = Job(
        config=config,
        state=state,
        step=make_step(model_config, config),
        frozen=frozen,
        batches=iter(_pipeline(config, samples)),
        fingerprint=fingerprint,
        inputs=inputs,
        watched=WATCHED if config.loss.kind == "task" else (*WATCHED, "distil_loss"),
        labels=dict.fromkeys(BY_TASK, TASKS),
        step_line=routing_line,
        flops=partial(router_step_flops, model_config, config),
        mesh=mesh,
        batch_shardings=None if mesh is None else rows_shardings(mesh, leading=1),
    )
    if held_out:
        place = partial(placed, shardings=rows_shardings(mesh, leading=0)) if mesh is not None else lambda rows: rows
        job = job._replace(evaluate=make_evaluation(model_config, config, held_out, place), best=OBJECTIVE)
    state = fit(job, directory)
    if held_out:
        state = best_state(job, directory)
    if is_main():
        export(config, model_config, frozen, state, directory, source=model.source)
    wait_for_all("export")


def _check_mesh(config: RouterTrainConfig, mesh: Mesh | None) -> None:
    if mesh is None:
        return
    check_rows(config.optim.rows, mesh)
    if jax.process_count() > 1 and (config.warm_start.rows or config.init_heads):
        raise ConfigError(
            "warm_start.rows and init_heads work in one process only. Make the warm start with steps of its own on one "
            "host, and give its routers as init."
        )
    if jax.process_count() > 1 and set(config.run.export) != {"router"}:
        raise ConfigError(
            f"run.export is {list(config.run.export)}; several processes write `router` only, as none holds the whole "
            "model. Join it to the model afterwards: elastic-jax convert with its router."
        )


def export(
    config: RouterTrainConfig,
    model_config: ModelConfig,
    frozen: Mapping[str, jax.Array],
    state: RouterState,
    directory: Path,
    *,
    source: str | None,
) -> None:
    """Writes the trained routers in every format of `run.export`, each to its own folder."""
    from elastic_jax.weights import save_pretrained
    from elastic_jax.weights.router_only import default_extras

    model = from_params(model_config, {**frozen, **state.trainable.router}, source=source)
    if config.sparsity.loss == "official":
        first, second = (np.asarray(state.trainable.multipliers[name]) for name in ("linear", "quadratic"))
        learnt = {"model.sparsity_lambda1_task": first, "model.sparsity_lambda2_task": second}
        model.extras = Extras(default_extras(model_config) | learnt)
    for form in config.run.export:
        save_pretrained(model, directory / form, format=form, overwrite=True)


def routing_line(values: Values) -> str:
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
        row_shape(config),
        rows=config.optim.rows,
        accumulate=config.optim.accumulate,
        seed=config.run.seed,
        packing=config.data.packing,
    )
