"""Which samples share a row: best fit over a whole epoch, as a function of seed and epoch alone."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np


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
