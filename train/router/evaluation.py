"""Evaluation of routers in training: their own decisions, not sampled ones, on samples held out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from elastic_jax.config import ModelConfig
from elastic_jax.errors import DataError
from elastic_jax.model import from_params
from train.config import RouterTrainConfig
from train.data.dataset import row_shape
from train.data.packing import Rows, Sample
from train.data.pipeline import in_batches, whole_epoch
from train.data.records import TASKS
from train.router.losses import packed_nll, sparse_share, target_violation
from train.router.step import RouterState

OBJECTIVE = "objective"
"""Figure that marks the best routers: loss + penalty/2 * mean squared violation of the targets, over the tasks."""


def split_samples(samples: Sequence[Sample], share: float, seed: int) -> tuple[list[Sample], list[Sample]]:
    """(trained on, held out); at least one is held out if the share is not 0.

    Raises:
        DataError: nothing is left to train on.
    """
    held = max(round(share * len(samples)), 1) if share else 0
    if held and held >= len(samples):
        raise DataError(
            f"held_out {share} of {len(samples)} samples leaves none to train on. Lower data.held_out or give more "
            "samples."
        )
    order = np.random.default_rng([seed, len(samples)]).permutation(len(samples))
    chosen = set(order[:held].tolist())
    parts: tuple[list[Sample], list[Sample]] = ([], [])
    for index, sample in enumerate(samples):
        parts[index in chosen].append(sample)
    return parts


def make_evaluation(
    model_config: ModelConfig, config: RouterTrainConfig, samples: Sequence[Sample], place: Callable[[Rows], Rows]
) -> Callable[[RouterState, Any], dict[str, float]]:
    """Builds `evaluate(state, frozen)` over every sample once.

    `loss` is the weighted mean of the language-model loss as in training, `msr/TASK` the share of sparse heads of a
    task, and `objective` the figure that the best checkpoint is chosen by. `place` puts rows `[rows, T]` on the
    devices.
    """

    @jax.jit
    def measure(router: dict[str, jax.Array], frozen: dict[str, jax.Array], rows: Rows) -> tuple[jax.Array, jax.Array]:
        model = from_params(model_config, frozen | router)
        out, nll_BT = packed_nll(model, rows, max_segments=config.data.max_segments)
        member_BMk = jax.nn.one_hot(rows.task_ids, len(TASKS))
        return (rows.weights * nll_BT).sum(), jnp.einsum("bm,bmk->k", sparse_share(out.z), member_BMk)

    low, high = (np.array([task.target[end] for task in config.tasks.by_id]) for end in (0, 1))
    present = np.bincount([sample.task_ids[0] for sample in samples], minlength=len(TASKS))
    learnt = sum(int((sample.weights > 0).sum()) for sample in samples)
    scale = len(samples) if config.data.weighting == "samples" else learnt

    shape = row_shape(config)
    batches = in_batches(whole_epoch(samples, shape), config.optim.rows, shape)

    def evaluate(state: RouterState, frozen: Any) -> dict[str, float]:
        total, shares = 0.0, np.zeros(len(TASKS))
        for rows in batches:
            loss, share = measure(state.trainable.router, frozen, place(rows))
            total, shares = total + float(loss), shares + np.asarray(share)
        found = present > 0
        msr = shares[found] / present[found]
        violation = np.asarray(target_violation(jnp.asarray(msr), jnp.asarray(low[found]), jnp.asarray(high[found])))
        loss = total / scale
        by_task = {f"msr/{TASKS[task]}": float(value) for task, value in zip(np.flatnonzero(found), msr, strict=True)}
        squares = float((violation**2).mean())
        return {"loss": loss, OBJECTIVE: loss + config.sparsity.penalty / 2 * squares, **by_task}

    return evaluate
