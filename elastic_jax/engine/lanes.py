"""A running request: which tokens its rows read next, and what follows from what they drew."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import jax
import numpy as np

from elastic_jax.engine import programs
from elastic_jax.engine.requests import Request
from elastic_jax.engine.slots import Slots
from elastic_jax.errors import ShapeError
from elastic_jax.sampling import RowSampling


class Lane(Protocol):
    """What the engine asks of a running request."""

    request: Request
    rows: list[int]

    def start(self, logits_1V: jax.Array) -> list[int]:
        """The prompt was read to its end: the first tokens of the answer."""
        ...

    def pieces(self) -> dict[int, list[int]]:
        """Tokens for each row to read now. Every row has room for one."""
        ...

    def drawings(self) -> dict[int, RowSampling]:
        """How the rows draw."""
        ...

    def advance(self, logits_BTV: jax.Array, drawn_BT: np.ndarray) -> list[int]:
        """The pieces were read: new tokens of the answer."""
        ...


class SampledLane:
    """One row that draws one token after the other, and verifies drafts of several at once.

    A draft is accepted as long as it is what the row draws anyway, with the same random number: drafts change how many
    steps an answer takes, not the answer.
    """

    def __init__(self, request: Request, rows: list[int], slots: Slots, unread: Sequence[int]):
        self.request, self.rows = request, rows
        self._slots = slots
        self._known = list(unread)
        self._piece: list[int] = []

    def start(self, logits_1V: jax.Array) -> list[int]:
        drawn = programs.first_tokens(logits_1V, RowSampling.stack([self._drawing(0)]))
        self._known = [int(np.asarray(drawn)[0, 0])]
        return self._known[:]

    def pieces(self) -> dict[int, list[int]]:
        row = self.rows[0]
        width = min(self._slots.engine.step_tokens, self._slots.room(row))
        self._piece = self._known[:width]
        if len(self._known) == 1:
            self._piece += self._drafts(width - 1)
        return {row: self._piece}

    def _drafts(self, width: int) -> list[int]:
        request, most = self.request, self._slots.most_drafts
        limit = min(width, request.max_new_tokens - len(request.tokens) - 1)
        if request.draft is None or limit < 1:
            return []
        drafts = [int(token) for token in request.draft([*request.prompt, *request.tokens])]
        vocab = self._slots.config.vocab_size
        if len(drafts) > most:
            raise ShapeError(
                f"a draft of {len(drafts)} tokens; want at most {most}, the smaller of step_tokens - 1 and, below 16 "
                "bits, the residual of the cache. Cut the draft."
            )
        if any(not 0 <= token < vocab for token in drafts):
            raise ShapeError(f"a draft holds {drafts}; want ids in [0, {vocab}).")
        return drafts[:limit]

    def drawings(self) -> dict[int, RowSampling]:
        read_before_drawing = min(len(self._known), len(self._piece)) - 1
        return {self.rows[0]: self._drawing(len(self.request.tokens) - read_before_drawing)}

    def _drawing(self, index: int) -> RowSampling:
        sampling = self.request.sampling
        return RowSampling(sampling.temperature, sampling.top_k, sampling.top_p, self.request.seed, index)

    def advance(self, logits_BTV: jax.Array, drawn_BT: np.ndarray) -> list[int]:
        row, piece = self.rows[0], self._piece
        if len(self._known) > len(piece):
            self._slots.count(row, len(piece))
            del self._known[: len(piece)]
            return []
        accepted = len(self._known)
        new = [int(drawn_BT[row, accepted - 1])]
        while accepted < len(piece) and piece[accepted] == new[-1]:
            new.append(int(drawn_BT[row, accepted]))
            accepted += 1
        self._slots.count(row, accepted)
        self._known = new[-1:]
        return new
