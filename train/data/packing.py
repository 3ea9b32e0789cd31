"""Tokenised samples and the packed rows that training sees.

A row holds whole samples, each from a block boundary on (the tail of its last block is padding), so that a block of
queries belongs to one sample and kernels need one mode per block.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from elastic_jax.errors import DataError
from train.data.records import TASKS, Record
from train.data.templates import Template, render

LossOn = Literal["all", "answer"]
Weighting = Literal["tokens", "samples"]


class Sample(NamedTuple):
    """One tokenised record; the arrays have its length n, the last two are `[1]` so that rows collect them."""

    input_ids: np.ndarray
    labels: np.ndarray
    """The next token; the last position has no label (0, weight 0)."""
    weights: np.ndarray
    """Loss weight of predicting each label, float32."""
    prompt_lengths: np.ndarray
    task_ids: np.ndarray


def tokenise(
    records: Iterable[Record],
    tokenizer: Any,
    *,
    template: Template,
    row_length: int,
    loss_on: Sequence[LossOn],
    loss_weight: Sequence[float],
    weighting: Weighting,
) -> list[Sample]:
    """Samples of all records, in order; see `make_sample` for the other arguments.

    Raises:
        DataError: no record, or one that is longer than a row.
    """
    samples = []
    for index, record in enumerate(records):
        prompt, answer = render(record, template, tokenizer, index=index)
        ids = np.array(prompt + answer, np.int32)
        if len(ids) > row_length:
            raise DataError(
                f"record {index} ({TASKS[record.task]}) has {len(ids)} tokens; a row holds {row_length}. "
                "Raise data.row_length, lower data.max_tokens, or shorten the record."
            )
        samples.append(
            make_sample(ids, len(prompt), record.task, loss_on=loss_on, loss_weight=loss_weight, weighting=weighting)
        )
    if not samples:
        raise DataError("The data set is empty. Give records, or a folder of texts to build them from.")
    return samples


def make_sample(
    ids: np.ndarray,
    prompt_length: int,
    task: int,
    *,
    loss_on: Sequence[LossOn],
    loss_weight: Sequence[float],
    weighting: Weighting,
    learnable: np.ndarray | None = None,
) -> Sample:
    """The sample of a prompt and its answer, `ids` int32 `[n]`.

    Args:
        loss_on: per task id, whether every token or only the answer is learnt from.
        loss_weight: per task id, factor of the loss.
        weighting: `tokens` counts every token alike, so that long samples dominate; `samples` divides by the number
            of a sample's learnt tokens.
        learnable: bool `[n]`, tokens that may be learnt at all; None for every one.
    """
    first = 0 if loss_on[task] == "all" else max(prompt_length - 1, 0)
    weights = np.zeros(len(ids), np.float32)
    weights[first : len(ids) - 1] = loss_weight[task]
    if learnable is not None:
        weights[:-1] *= learnable[1:]
    if weighting == "samples":
        weights /= max(np.count_nonzero(weights), 1)
    labels = np.append(ids[1:], 0).astype(np.int32)
    return Sample(ids, labels, weights, np.array([prompt_length], np.int32), np.array([task], np.int32))


class Rows(NamedTuple):
    """Packed rows with static shapes; leading axes are the caller's. NumPy in the pipeline, jax inside the step."""

    input_ids: Any
    """`[..., T]`"""
    segment_ids: Any
    """`[..., T]`: 1, 2, ... for the samples of a row, 0 for padding."""
    labels: Any
    weights: Any
    prompt_lengths: Any
    """`[..., M]`, 0 where the row has fewer samples."""
    task_ids: Any
    """`[..., M]`, -1 where the row has fewer samples."""
