"""Beam search in an engine: the rows of one request are continuations of one prompt and share its pages."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import numpy as np

from elastic_jax.engine import programs
from elastic_jax.engine.requests import Request
from elastic_jax.engine.slots import Slots
from elastic_jax.sampling import RowSampling


class BeamLane:
    """Keeps the W most likely beginnings of an answer. The answer is given as a whole, at the end of the search.

    Ends when W beams have met a stop token and no open one can beat the worst of them as it stands, or at the longest
    answer. Scores are log-probabilities over tokens to the power of `length_penalty`.
    """

    def __init__(self, request: Request, rows: list[int], slots: Slots, unread: Sequence[int]):
        self.request, self.rows = request, rows
        self._slots = slots
        self._unread = list(unread)
        self._tokens: list[list[int]] = [[] for _ in rows]
        self._scores = np.where(np.arange(len(rows)) == 0, 0.0, -np.inf).astype(np.float32)
        self._ended: list[tuple[float, list[int]]] = []

    def start(self, logits_1V: jax.Array) -> list[int]:
        return self._choose(logits_1V, np.zeros(len(self.rows), np.int32), 0)

    def pieces(self) -> dict[int, list[int]]:
        if self._unread:
            width = min(self._slots.engine.step_tokens, self._slots.room(self.rows[0]))
            return {self.rows[0]: self._unread[:width]}
        return {row: tokens[-1:] for row, tokens in zip(self.rows, self._tokens, strict=True)}

    def drawings(self) -> dict[int, RowSampling]:
        return {}

    def advance(self, logits_BTV: jax.Array, drawn_BT: np.ndarray) -> list[int]:
        pieces = self.pieces()
        for row, piece in pieces.items():
            self._slots.count(row, len(piece))
        if not self._unread:
            return self._choose(logits_BTV, np.array(self.rows, np.int32), 0)
        read = len(pieces[self.rows[0]])
        del self._unread[:read]
        if self._unread:
            return []
        return self._choose(logits_BTV, np.full(len(self.rows), self.rows[0], np.int32), read - 1)

    def _choose(self, logits: jax.Array, rows_W: np.ndarray, column: int) -> list[int]:
        """Replaces the beams by the best continuations; the whole answer where it is found, else nothing."""
        width, length = len(self.rows), len(self._tokens[0]) + 1
        # Enough that `width` candidates are left when every stop token is among them.
        most = width * (1 + len(self.request.stop_tokens))
        candidates = programs.best_continuations(logits, rows_W, np.int32(column), self._scores, most=most)
        chosen: list[tuple[float, int, int]] = []
        for rank, (score, beam, token) in enumerate(zip(*map(np.asarray, candidates), strict=True)):
            if int(token) in self.request.stop_tokens:
                if rank < width:
                    self._end(float(score), [*self._tokens[beam], int(token)])
            elif len(chosen) < width:
                chosen.append((float(score), int(beam), int(token)))
        last = length == self.request.max_new_tokens
        if last:
            for score, beam, token in chosen:
                self._end(score, [*self._tokens[beam], token])
        best_open = chosen[0][0] / length**self.request.length_penalty
        if last or (len(self._ended) == width and best_open <= self._ended[-1][0]):
            self.request.score, tokens = self._ended[0]
            return tokens
        parents = [beam for _, beam, _ in chosen]
        self._tokens = [[*self._tokens[beam], token] for _, beam, token in chosen]
        self._scores = np.array([score for score, _, _ in chosen], np.float32)
        self._reorder(parents)
        return []

    def _end(self, score: float, tokens: list[int]) -> None:
        self._ended.append((score / len(tokens) ** self.request.length_penalty, tokens))
        self._ended = sorted(self._ended, key=lambda ended: -ended[0])[: len(self.rows)]

    def _reorder(self, parents: list[int]) -> None:
        """Gives every beam a row in the state of its parent's; copies only for a parent's second child and further."""
        spare = [row for beam, row in enumerate(self.rows) if beam not in parents]
        rows, taken = [], set()
        for parent in parents:
            row = self.rows[parent]
            if parent in taken:
                row = spare.pop()
                self._slots.copy(self.rows[parent], row)
            taken.add(parent)
            rows.append(row)
        self.rows[:] = rows
