"""Evaluation of routers in training: their own decisions, not sampled ones, on samples held out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from elastic_jax.config import ModelConfig
from elastic_jax.errors import DataError
from elastic_jax.model import from_params
from train.config import RouterTrainConfig
from train.data.packing import Rows, Sample
from train.data.pipeline import whole_epoch
from train.data.records import TASKS
from train.router.losses import sparse_share, target_violation
from train.router.step import RouterState
from train.token_losses import token_nll

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
    task, and `objective` what the best checkpoint is chosen by. `place` puts rows `[rows, T]` on the devices.
    """

    @jax.jit
    def measure(router: dict[str, jax.Array], frozen: dict[str, jax.Array], rows: Rows) -> tuple[jax.Array, jax.Array]:
        model = from_params(model_config, frozen | router)
        out = model.hidden(
            rows.input_ids,
            segment_ids=rows.segment_ids,
            prompt_lengths=rows.prompt_lengths,
            num_segments=config.data.max_segments,
        )
        nll_BT = token_nll(out.hidden_BTD, model.head_kernel(), rows.labels, rows.weights > 0)
        member_BMk = rows.task_ids[..., None] == jnp.arange(len(TASKS))
        return (rows.weights * nll_BT).sum(), jnp.einsum(
            "bm,bmk->k", sparse_share(out.z), member_BMk.astype(jnp.float32)
        )

    low, high = (np.array([task.target[end] for task in config.tasks.by_id]) for end in (0, 1))
    present = np.bincount([sample.task_ids[0] for sample in samples], minlength=len(TASKS))
    learnt = sum(int((sample.weights > 0).sum()) for sample in samples)
    scale = len(samples) if config.data.weighting == "samples" else learnt

    def evaluate(state: RouterState, frozen: Any) -> dict[str, float]:
        total, shares = 0.0, np.zeros(len(TASKS))
        for rows in _batches(config, samples):
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


def _batches(config: RouterTrainConfig, samples: Sequence[Sample]) -> Iterator[Rows]:
    """All samples, packed, in batches of `optim.rows` rows, the last one filled up with empty rows."""
    rows = whole_epoch(
        samples,
        row_length=config.data.row_length,
        block_size=config.router.block_size,
        max_segments=config.data.max_segments,
    )
    size = config.optim.rows
    for start in range(0, len(rows.input_ids), size):
        part = Rows(*(field[start : start + size] for field in rows))
        missing = size - len(part.input_ids)
        fill = Rows(0, 0, 0, 0, 0, -1)
        yield Rows(
            *(
                np.pad(field, ((0, missing), (0, 0)), constant_values=value)
                for field, value in zip(part, fill, strict=True)
            )
        )
