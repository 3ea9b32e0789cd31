"""Tokenised comparisons and their batches: one prompt, then the chosen and the rejected answers, apart from it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from elastic_jax.errors import DataError


class PairSample(NamedTuple):
    """One tokenised comparison. The prompt followed by a response is the whole conversation's tokens."""

    prompt_ids: np.ndarray
    """`[n]` int32."""
    response_ids: tuple[np.ndarray, ...]
    """The chosen answer first; each ends with what the chat template puts after an answer."""
    margin: float
    """0 where the record has none."""
    kinds: tuple[str, ...] = ()
    """As in `PreferenceRecord`, of the responses after the first; not part of batches."""


class PairBatch(NamedTuple):
    """Comparisons with static shapes; leading axes `[accumulate, rows]`. NumPy in the pipeline, jax inside the step."""

    prompt_ids: Any
    """`[..., P]`, padded with 0 on the right."""
    prompt_lengths: Any
    """`[...]`"""
    response_ids: Any
    """`[..., 1 + V, R]`, chosen first, padded with 0 on the right."""
    response_lengths: Any
    """`[..., 1 + V]`; 0 for a rejected answer that is not there."""
    margin: Any
    """`[...]` float32, 0 where none."""


def pair_pipeline(
    samples: Sequence[PairSample],
    *,
    prompt_length: int,
    response_length: int,
    rejects: int,
    rows: int,
    accumulate: int,
    seed: int,
) -> Any:
    """A grain dataset of `PairBatch` with leading axes `[accumulate, rows]` that repeats for ever, shuffled anew each
    epoch.

    Its iterator has `get_state` and `set_state`, so that a resumed run sees exactly the batches that were left.

    Args:
        prompt_length, response_length: the P and R of `PairBatch`, in tokens.
        rejects: the V of `PairBatch`.

    Raises:
        DataError: no sample, or one longer than the shapes.
    """
    import grain

    _check(samples, prompt_length, response_length, rejects)
    return (
        grain.MapDataset.source(samples)
        .seed(seed)
        .shuffle()
        .repeat()
        .map(lambda sample: _row(sample, prompt_length, response_length, rejects))
        .to_iter_dataset(grain.ReadOptions(num_threads=0))
        .batch(rows * accumulate)
        .map(lambda batch: PairBatch(*(np.reshape(field, (accumulate, rows, *np.shape(field)[1:])) for field in batch)))
    )


def pair_batches(
    samples: Sequence[PairSample], *, prompt_length: int, response_length: int, rejects: int, rows: int
) -> list[tuple[PairBatch, int]]:
    """All samples once and in order, for evaluation: batches with leading axis `[rows]`, and how many rows are real.

    The last batch repeats its last sample; shapes never change.

    Raises:
        DataError: no sample, or one longer than the shapes.
    """
    _check(samples, prompt_length, response_length, rejects)
    batches = []
    for start in range(0, len(samples), rows):
        part = [_row(sample, prompt_length, response_length, rejects) for sample in samples[start : start + rows]]
        filled = part + [part[-1]] * (rows - len(part))
        batches.append((PairBatch(*(np.stack(fields) for fields in zip(*filled, strict=True))), len(part)))
    return batches


def _check(samples: Sequence[PairSample], prompt_length: int, response_length: int, rejects: int) -> None:
    if not samples:
        raise DataError("The preference data set is empty. Give records that have a chosen and a rejected answer.")
    for index, sample in enumerate(samples):
        longest = max(map(len, sample.response_ids[: 1 + rejects]))
        if len(sample.prompt_ids) > prompt_length or longest > response_length:
            raise DataError(
                f"comparison {index} has {len(sample.prompt_ids)} tokens of prompt and {longest} of answer; a row "
                f"holds {prompt_length} and {response_length}. Give these lengths to `pair_samples`, which cuts "
                "prompts and leaves out what cannot fit."
            )


def _row(sample: PairSample, prompt_length: int, response_length: int, rejects: int) -> PairBatch:
    """A sample padded to a row without leading axes; of more rejected answers the first are taken."""
    responses = sample.response_ids[: 1 + rejects]
    response_ids = np.zeros((1 + rejects, response_length), np.int32)
    lengths = np.zeros(1 + rejects, np.int32)
    for place, response in enumerate(responses):
        response_ids[place, : len(response)] = response
        lengths[place] = len(response)
    prompt_ids = np.zeros(prompt_length, np.int32)
    prompt_ids[: len(sample.prompt_ids)] = sample.prompt_ids
    return PairBatch(prompt_ids, np.int32(len(sample.prompt_ids)), response_ids, lengths, np.float32(sample.margin))
