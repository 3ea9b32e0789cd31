"""The text of an answer while its tokens arrive."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from elastic_jax.text import stops


class GrowingText:
    """Text of a growing answer up to a stop string, without special tokens."""

    def __init__(self, tokenizer: Any, more_stops: Sequence[str] = ()):
        """`more_stops` end the answer besides the stop strings of the model."""
        self.whole, self.stopped = "", False
        self._tokenizer = tokenizer
        self._more_stops = more_stops
        self._stops = (*stops.stop_strings(tokenizer), *more_stops)
        self._tokens: list[int] = []
        self._told = 0

    def add(self, token: int) -> str:
        """What one more token adds; nothing while a character, or what may be a stop string, is incomplete."""
        self._tokens.append(token)
        self.whole, self.stopped = stops.answer_text(self._tokenizer, self._tokens, self._more_stops)
        if self.whole.endswith("\N{REPLACEMENT CHARACTER}") and not self.stopped:
            return ""
        return self._up_to(len(self.whole) - (0 if self.stopped else stops.held_back(self._stops, self.whole)))

    def rest(self) -> str:
        """What was held back of an answer that has ended."""
        return self._up_to(len(self.whole))

    def _up_to(self, end: int) -> str:
        piece, self._told = self.whole[self._told : end], max(self._told, end)
        return piece
