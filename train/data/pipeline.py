"""Samples to an endless, resumable stream of batches (grain).

Which samples share a row: best fit over a whole epoch, as a function of seed and epoch alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Literal

import numpy as np

from train.data.packing import Rows, RowShape, Sample


class RowPlan:
    """Packs samples of `sizes` blocks into rows of `capacity` blocks, at most `max_segments` to a row.

    Best fit, longest first: each sample goes to the fullest row that still takes it. Which sizes share a row is the
    same in every epoch, and so is the number of rows; which samples of a size stand where is drawn anew. So any row of
    any epoch is known without those before it, and every epoch shows every sample once.
    """

    def __init__(self, sizes: Sequence[int], *, capacity: int, max_segments: int, seed: int):
        self._order = np.argsort(-np.asarray(sizes), kind="stable")
        self._sizes = np.asarray(sizes)[self._order]
        self._rows = _best_fit(self._sizes.tolist(), capacity, max_segments)
        self._seed = seed
        self._epoch = lru_cache(maxsize=2)(self._draw)

    def __len__(self) -> int:
        """Rows of an epoch."""
        return len(self._rows)

    def samples(self, row: int, epoch: int) -> list[int]:
        """Indices of the samples in a row, in their order."""
        places = np.random.default_rng([self._seed, epoch, row]).permutation(self._rows[row])
        return self._epoch(epoch)[places].tolist()

    def _draw(self, epoch: int) -> np.ndarray:
        """Sample at each place of the descending order: those of one size shuffled among themselves."""
        mixed = np.random.default_rng([self._seed, epoch]).permutation(len(self._sizes))
        return self._order[mixed[np.argsort(-self._sizes[mixed], kind="stable")]]


def _best_fit(sizes: Sequence[int], capacity: int, max_segments: int) -> list[list[int]]:
    """Rows as places in `sizes`, which descend."""
    rows: list[list[int]] = []
    open_rows: list[list[int]] = [[] for _ in range(capacity + 1)]
    for place, size in enumerate(sizes):
        free = next((free for free in range(size, capacity + 1) if open_rows[free]), None)
        if free is None:
            row, free = len(rows), capacity
            rows.append([])
        else:
            row = open_rows[free].pop()
        rows[row].append(place)
        if len(rows[row]) < max_segments:
            open_rows[free - size].append(row)
    return rows


Packing = Literal["best_fit", "first_fit"]
FIRST_FIT_BINS = 8
"""Rows filled side by side by first fit."""


def make_pipeline(
    samples: Sequence[Sample],
    shape: RowShape,
    *,
    rows: int,
    accumulate: int,
    seed: int,
    packing: Packing = "best_fit",
) -> Any:
    """A grain dataset of `Rows` with shape `[accumulate, rows, ...]` that repeats for ever, reshuffled each epoch.

    Its iterator has `get_state` and `set_state`, so that a resumed run sees exactly the batches that were left. A batch
    is the whole batch, whatever the number of processes, so a position means the same on any number of them. Samples
    are packed whole, at most `max_segments` to a row, each from a block boundary on.

    Args:
        packing: `best_fit` plans each epoch with `RowPlan`; `first_fit` fills 8 rows at a time in the order of the
            samples.
    """
    import grain

    if packing == "first_fit":
        stream = _first_fit(samples, shape, seed)
    else:
        plan = _plan(samples, shape, seed=seed)

        def row(index: int, number: int) -> Rows:
            chosen = plan.samples(number, epoch=index // len(plan))
            return pack([samples[sample] for sample in chosen], shape)

        numbers = grain.MapDataset.range(len(plan)).seed(seed).shuffle().repeat()
        stream = numbers.map_with_index(row).to_iter_dataset(grain.ReadOptions(num_threads=0))
    return stream.batch(rows * accumulate).map(
        lambda batch: Rows(*(field.reshape(accumulate, rows, -1) for field in batch))
    )


def whole_epoch(samples: Sequence[Sample], shape: RowShape) -> list[Rows]:
    """Every sample once, in rows without leading axes."""
    plan = _plan(samples, shape, seed=0)
    return [pack([samples[i] for i in plan.samples(row, epoch=0)], shape) for row in range(len(plan))]


def in_batches(rows: Sequence[Rows], size: int, shape: RowShape) -> list[Rows]:
    """Rows in batches `[size, ...]`, in their order; the last batch is filled up with empty rows."""
    filled = [*rows, *[pack([], shape)] * (-len(rows) % size)]
    return [
        Rows(*(np.stack(field) for field in zip(*filled[start : start + size], strict=True)))
        for start in range(0, len(filled), size)
    ]


def _plan(samples: Sequence[Sample], shape: RowShape, *, seed: int) -> RowPlan:
    sizes = [-(-len(sample.input_ids) // shape.block_size) for sample in samples]
    return RowPlan(sizes, capacity=shape.length // shape.block_size, max_segments=shape.max_segments, seed=seed)


def pack(samples: Sequence[Sample], shape: RowShape) -> Rows:
    """One row that holds these samples, without leading axes."""
    ids, segments, labels = (np.zeros(shape.length, np.int32) for _ in range(3))
    weights = np.zeros(shape.length, np.float32)
    prompts, tasks = np.zeros(shape.max_segments, np.int32), np.full(shape.max_segments, -1, np.int32)
    start = 0
    for index, sample in enumerate(samples):
        size = len(sample.input_ids)
        place = slice(start, start + size)
        ids[place], labels[place], weights[place] = sample.input_ids, sample.labels, sample.weights
        segments[place] = index + 1
        prompts[index], tasks[index] = sample.prompt_lengths[0], sample.task_ids[0]
        start += -(-size // shape.block_size) * shape.block_size
    return Rows(ids, segments, labels, weights, prompts, tasks)


def _first_fit(samples: Sequence[Sample], shape: RowShape, seed: int) -> Any:
    import grain
    from grain.experimental import FirstFitPackIterDataset

    length, block_size, max_segments = shape
    stream = (
        grain.MapDataset.source([sample._asdict() for sample in samples])
        .seed(seed)
        .shuffle()
        .repeat()
        .to_iter_dataset(grain.ReadOptions(num_threads=0))
    )
    packed = FirstFitPackIterDataset(
        stream,
        length_struct=_by_field(length, length, length, max_segments, max_segments),
        num_packing_bins=FIRST_FIT_BINS,
        seed=seed,
        pack_alignment_struct=_by_field(block_size, block_size, block_size, 1, 1),
        padding_struct=_by_field(0, 0, 0.0, 0, -1),
        max_sequences_per_bin=max_segments,
    )
    return packed.map(_row)


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
