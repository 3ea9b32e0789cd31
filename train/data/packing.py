"""Tokenised samples and the packed rows that training sees.

A row holds whole samples, each from a block boundary on (the tail of its last block is padding), so that a block of
queries belongs to one sample and kernels need one mode per block.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np

from elastic_jax.config import ModelConfig
from elastic_jax.errors import DataError
from elastic_jax.layout import check_prompts
from train.config import RouterTrainConfig, TaskConfig
from train.data.records import TASKS, Record, errors_name
from train.data.templates import render


class Sample(NamedTuple):
    """One tokenised record; the arrays have its length n, the last two are `[1]` so that rows collect them."""

    input_ids: np.ndarray
    labels: np.ndarray
    """The next token; the last position has no label (0, weight 0)."""
    weights: np.ndarray
    """Loss weight of predicting each label, float32."""
    prompt_lengths: np.ndarray
    task_ids: np.ndarray


def tokenise(records: Iterable[Record], tokenizer: Any, config: RouterTrainConfig) -> list[Sample]:
    """Samples of all records, in order, in the template and with the loss weights of the settings.

    Raises:
        DataError: no record, or one that is longer than a row.
    """
    samples, row_length = [], config.data.row_length
    for index, record in enumerate(records):
        where = record.where or f"record {index}"
        with errors_name(where):
            prompt, answer = render(record, config.data.template, tokenizer, index=index)
        ids = np.array(prompt + answer, np.int32)
        if len(ids) > row_length:
            raise DataError(
                f"{where} ({TASKS[record.task]}) has {len(ids)} tokens; a row holds {row_length}. "
                "Raise data.row_length, lower data.max_tokens, or shorten the record."
            )
        samples.append(make_sample(ids, len(prompt), record.task, config))
    if not samples:
        raise DataError("The data set is empty. Give records, or a folder of texts to build them from.")
    return samples


def make_sample(
    ids: np.ndarray,
    prompt_length: int,
    task: int = 0,
    config: RouterTrainConfig | None = None,
    *,
    learnable: np.ndarray | None = None,
) -> Sample:
    """The sample of a prompt and its answer, `ids` int32 `[n]`.

    Args:
        config: its settings of the task, and its weighting, decide what is learnt (the first token of an answer is
            predicted from the prompt's last); without it the answer is, every token alike.
        learnable: bool `[n]`, tokens that may be learnt at all; None for every one.
    """
    settings = TaskConfig() if config is None else config.tasks.by_id[task]
    first = 0 if settings.loss_on == "all" else max(prompt_length - 1, 0)
    weights = np.zeros(len(ids), np.float32)
    weights[first : len(ids) - 1] = settings.loss_weight
    if learnable is not None:
        weights[:-1] *= learnable[1:]
    if config is not None and config.data.weighting == "samples":
        weights /= max(np.count_nonzero(weights), 1)
    labels = np.append(ids[1:], 0).astype(np.int32)
    return Sample(ids, labels, weights, np.array([prompt_length], np.int32), np.array([task], np.int32))


def check_sequences(sequences: Iterable[np.ndarray], model: ModelConfig) -> None:
    """Checks that a model can read the token ids `[n]` of every sample, in order, as generation checks its prompts.

    Raises:
        DataError: a sample with ids that the vocabulary does not have, or with more tokens than the model has
            positions.
    """
    for index, ids in enumerate(sequences):
        with errors_name(f"sample {index}"):
            check_prompts(model, ids[None])


class RowShape(NamedTuple):
    """The static shape of packed rows."""

    length: int
    """Tokens of a row."""
    block_size: int
    """Tokens of a block; each sample starts on a multiple of it."""
    max_segments: int
    """Most samples in a row."""


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
