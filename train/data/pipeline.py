"""Samples to an endless, resumable stream of batches (grain)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from train.data.packing import Rows, Sample

PACKING_BINS = 8
"""Rows filled side by side by first fit; more bins waste less padding and mix neighbouring epochs more."""


def make_pipeline(
    samples: Sequence[Sample],
    *,
    row_length: int,
    block_size: int,
    max_segments: int,
    rows: int,
    accumulate: int,
    seed: int,
) -> Any:
    """A grain dataset of `Rows` with shape `[accumulate, rows, ...]` that repeats for ever, reshuffled each epoch.

    Its iterator has `get_state` and `set_state`, so that a resumed run sees exactly the batches that were left.
    Samples are packed whole by first fit, at most `max_segments` to a row, each from a block boundary on.
    """
    import grain
    from grain.experimental import FirstFitPackIterDataset

    stream = (
        grain.MapDataset.source([sample._asdict() for sample in samples])
        .seed(seed)
        .shuffle()
        .repeat()
        .to_iter_dataset(grain.ReadOptions(num_threads=0))
    )
    packed = FirstFitPackIterDataset(
        stream,
        length_struct=_by_field(row_length, row_length, row_length, max_segments, max_segments),
        num_packing_bins=PACKING_BINS,
        seed=seed,
        pack_alignment_struct=_by_field(block_size, block_size, block_size, 1, 1),
        padding_struct=_by_field(0, 0, 0.0, 0, -1),
        max_sequences_per_bin=max_segments,
    )
    return (
        packed.map(_row)
        .batch(rows * accumulate)
        .map(lambda batch: Rows(*(field.reshape(accumulate, rows, -1) for field in batch)))
    )


def _by_field(*values: float) -> dict[str, float]:
    """One packing option for each field of `Sample`."""
    return dict(zip(Sample._fields, values, strict=True))


def _row(packed: dict[str, np.ndarray]) -> Rows:
    return Rows(
        packed["input_ids"],
        packed["input_ids_segment_ids"].astype(np.int32),
        packed["labels"],
        packed["weights"],
        packed["prompt_lengths"],
        packed["task_ids"],
    )
