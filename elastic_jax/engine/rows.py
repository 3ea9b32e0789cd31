"""The rows of an engine: which are free, and which tokens they still hold when their request has ended."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from elastic_jax.engine.lanes import Lane
from elastic_jax.engine.requests import Request


@dataclass(frozen=True)
class Held:
    """Tokens whose keys and values a row holds, and the head modes int8 `[L, K]` with which they were read."""

    tokens: tuple[int, ...]
    mode_LK: np.ndarray


@dataclass(frozen=True)
class Beginning:
    """A row that holds the first `length` tokens of a prompt."""

    row: int
    length: int


def held_by(request: Request, length: int) -> Held | None:
    """What the row of a request holds; None where routers decided on its prompt, or beams share its rows."""
    if request.routing is None or request.beams > 1:
        return None
    return Held((*request.prompt, *request.tokens)[:length], request.routing[:, 0])


class Rows:
    """The free rows. Rows that hold nothing are taken first, then those that were released longest ago."""

    def __init__(self, count: int, *, keep: bool):
        """With `keep`, free rows keep what they held until they are taken."""
        self._keep = keep
        self._free = list(range(count - 1, -1, -1))
        self._held: dict[int, Held] = {}

    @property
    def free(self) -> int:
        """How many rows are free."""
        return len(self._free)

    def take(self, count: int) -> list[int]:
        """Free rows; what they held is lost."""
        rows = [self._free.pop() for _ in range(count)]
        for row in rows:
            self._held.pop(row, None)
        return rows

    def take_to_continue(self, beginning: Beginning) -> int:
        """A free row for a prompt with this beginning: the row that holds it, where no more than that is lost."""
        row = beginning.row
        if row not in self._held or len(self._held[row].tokens) > beginning.length:
            return self.take(1)[0]
        self._free.remove(row)
        del self._held[row]
        return row

    def give_back(self, rows: list[int], held: Held | None = None) -> None:
        """Frees rows; a single one may still hold tokens."""
        if not self._keep or held is None or not held.tokens:
            self._free += rows
            return
        self._free[:0] = rows
        self._held |= dict.fromkeys(rows, held)

    def longest_beginning(self, request: Request, running: Iterable[Lane], lengths: np.ndarray) -> Beginning | None:
        """The row, free or of a running request, that holds most of a prompt, at least half of it.

        The last token of the prompt is read in any case, for the token after it is drawn from what it gives.
        """
        if not self._keep or request.routing is None or request.prefix is not None or request.beams > 1:
            return None
        rows = {lane.rows[0]: held_by(lane.request, int(lengths[lane.rows[0]])) for lane in running} | self._held
        modes, prompt = request.routing[:, 0], request.prompt
        best = Beginning(0, 0)
        for row, held in rows.items():
            if held is not None and np.array_equal(held.mode_LK, modes):
                length = min(_shared(held.tokens, prompt), len(prompt) - 1)
                best = max(best, Beginning(row, length), key=lambda beginning: beginning.length)
        return best if best.length and 2 * best.length >= len(prompt) else None


def _shared(one: tuple[int, ...], other: tuple[int, ...]) -> int:
    """Tokens with which both begin."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((place for place, (a, b) in pairs if a != b), min(len(one), len(other)))
