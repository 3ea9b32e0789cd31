"""Which pages of a pool are free, who holds the others, and how many a request may still take."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from elastic_jax.config import HeadMode

ABSENT = -1
"""In a table: the group has no page, because it is not packed yet or no query may see it any more."""


@dataclass
class Reservation:
    """Pages that rows of one request may still take; they are kept free for it."""

    left: int


class PagePool:
    """Counts the holders of every page. A page is written once, then only read, so any number of rows may share it."""

    def __init__(self, pages: int):
        self.size = pages
        self._holders = np.zeros(pages, np.int32)
        self._free = list(range(pages - 1, -1, -1))
        self._reservations: list[Reservation] = []

    @property
    def free(self) -> int:
        """Pages that nobody holds."""
        return len(self._free)

    @property
    def available(self) -> int:
        """Pages that nobody holds and nobody may ask for."""
        return self.free - sum(reservation.left for reservation in self._reservations)

    def reserve(self, pages: int) -> Reservation | None:
        """Keeps pages for a request; None where so many are not available."""
        if pages > self.available:
            return None
        self._reservations.append(Reservation(pages))
        return self._reservations[-1]

    def end(self, reservation: Reservation) -> None:
        """What was reserved and not taken is available again."""
        self._reservations = [other for other in self._reservations if other is not reservation]

    def take(self, shape: tuple[int, ...], reservation: Reservation) -> np.ndarray:
        """Free pages, int32 of `shape`, each with one holder."""
        count = int(np.prod(shape))
        pages = np.array([self._free.pop() for _ in range(count)], np.int32)
        self._holders[pages] = 1
        reservation.left -= count
        return pages.reshape(shape)

    def share(self, pages: np.ndarray) -> None:
        """Counts one more holder of each page; `ABSENT` ones are skipped."""
        self._holders[pages[pages >= 0]] += 1

    def drop(self, pages: np.ndarray, reservation: Reservation | None = None) -> None:
        """Counts one holder less of each page; those that become free are kept for the reservation."""
        pages = pages[pages >= 0]
        self._holders[pages] -= 1
        freed = pages[self._holders[pages] == 0].tolist()
        self._free += freed
        if reservation is not None:
            reservation.left += len(freed)


def stored_groups(mode_LK: np.ndarray, groups: int, extent: tuple[int, int]) -> np.ndarray:
    """Which of the first `groups` groups each head stores: bool `[L, K, groups]`; `extent` as by `sparse_groups`."""
    sinks, ring = extent
    group = np.arange(groups)
    kept = (group < sinks) | (group >= groups - ring)
    return np.where((mode_LK == HeadMode.SPARSE)[..., None], kept, True)


def pages_needed(
    mode_LK: np.ndarray, prompt_groups: int, groups: int, extent: tuple[int, int], *, rows: int = 1, shared: int = 0
) -> int:
    """Pages that `rows` continuations of one prompt hold at most while they grow to `groups` groups each.

    The first `shared` groups are in pages that others hold. Full heads share the groups of the prompt; sparse heads
    may come to hold their sinks and their newest groups once for every row.
    """
    sparse = int((mode_LK == HeadMode.SPARSE).sum())
    full = mode_LK.size - sparse
    own = groups - shared
    by_full = prompt_groups - shared + rows * (groups - prompt_groups)
    return full * by_full + sparse * rows * min(own, sum(extent))
