"""A running request: which tokens its rows read next, and what follows from what they drew.

Rows of a beam search are continuations of one prompt and share its pages.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice

import jax
import numpy as np

from elastic_jax.engine import programs
from elastic_jax.engine.requests import MOST_LOGPROBS, Request, TokenLogprob
from elastic_jax.engine.slots import Slots
from elastic_jax.errors import ShapeError
from elastic_jax.layout import token_ids
from elastic_jax.sampling import RowSampling


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
        """The first tokens of the answer, once the prompt is read to its end."""
        drawn = programs.first_tokens(logits_1V, RowSampling.stack([self._drawing(0)]))
        self._known = [int(np.asarray(drawn)[0, 0])]
        return self._told(self._known[:], logits_1V[:, None], 0, 0)

    def _told(self, new: list[int], logits_BTV: jax.Array, row: int, column: int) -> list[int]:
        """Newly drawn tokens, whose log-probabilities are noted: they come from `row`, from `column` on.

        A token is -1 where the logits are not finite.
        """
        if -1 in new:
            told = [*self.request.prompt, *self.request.tokens, *new[: new.index(-1)]]
            raise self._slots.not_finite(told, self.request.mode_LK)
        if self.request.top_logprobs is not None:
            self._note_logprobs(new, logits_BTV, row, column)
        return new

    def _note_logprobs(self, new: list[int], logits_BTV: jax.Array, row: int, column: int) -> None:
        tokens_T = np.zeros(logits_BTV.shape[1], np.int32)
        tokens_T[column : column + len(new)] = new
        most = min(MOST_LOGPROBS, logits_BTV.shape[2])
        found = programs.log_probabilities(logits_BTV, np.int32(row), tokens_T, most=most)
        chosen_T, top_TN, ids_TN = (np.asarray(x)[column : column + len(new)] for x in found)
        for chosen, top_N, ids_N in zip(chosen_T.tolist(), top_TN.tolist(), ids_TN.tolist(), strict=True):
            pairs = list(zip(ids_N, top_N, strict=True))[: self.request.top_logprobs]
            self.request.logprobs.append(TokenLogprob(chosen, pairs))

    def pieces(self) -> dict[int, list[int]]:
        """Tokens for each row to read now. Every row has room for one."""
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
        drafts = token_ids("the draft", islice(request.draft([*request.prompt, *request.tokens]), most + 1))
        vocab = self._slots.config.vocab_size
        if len(drafts) > most:
            raise ShapeError(
                f"a draft of more than {most} tokens; want at most {most}, the smaller of step_tokens - 1 and, below "
                "16 bits, the residual of the cache. Cut the draft."
            )
        if any(not 0 <= token < vocab for token in drafts):
            raise ShapeError(f"a draft holds {list(drafts)}; want ids in [0, {vocab}).")
        return list(drafts[:limit])

    def drawings(self) -> dict[int, RowSampling]:
        """How the rows draw."""
        read_before_drawing = min(len(self._known), len(self._piece)) - 1
        return {self.rows[0]: self._drawing(len(self.request.tokens) - read_before_drawing)}

    def _drawing(self, index: int) -> RowSampling:
        sampling = self.request.sampling
        return RowSampling(sampling.temperature, sampling.top_k, sampling.top_p, self.request.seed, index)

    def advance(self, logits_BTV: jax.Array, drawn_BT: np.ndarray) -> list[int]:
        """New tokens of the answer, once the pieces are read."""
        row, piece = self.rows[0], self._piece
        if len(self._known) > len(piece):
            self._slots.count(row, len(piece))
            del self._known[: len(piece)]
            return []
        accepted = first = len(self._known)
        new = [int(drawn_BT[row, accepted - 1])]
        while accepted < len(piece) and piece[accepted] == new[-1]:
            new.append(int(drawn_BT[row, accepted]))
            accepted += 1
        self._slots.count(row, accepted)
        self._known = new[-1:]
        return self._told(new, logits_BTV, row, first - 1)


class BeamLane:
    """Beam search: keeps the W most likely beginnings of an answer, and gives it as a whole at the end.

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
        if not np.isfinite(np.asarray(candidates[0])[0]):
            raise self._slots.not_finite([*self.request.prompt, *self._tokens[0]], self.request.mode_LK)
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


Lane = SampledLane | BeamLane
