"""Cuts pieces of a wanted number of tokens out of long texts."""

from __future__ import annotations

import re
from typing import Any

import numpy as np

from elastic_jax.text.tokens import encode_offsets, encode_text

CHARACTERS_PER_TOKEN = 8
"""Generous, so that a slice of this many characters for each token is long enough to cut."""

_SENTENCE_END = re.compile(r"(?<=[.!?])\s+|\n\n+")
_PIECE_END = re.compile(r"(?<=[.!?])\s+|\n+")


class Windows:
    """Token-exact cutting with one fast tokenizer."""

    def __init__(self, tokenizer: Any):
        self.tokenizer = tokenizer

    def count(self, text: str) -> int:
        """Number of tokens without special ones."""
        return len(encode_text(self.tokenizer, text, begin=False))

    def head(self, text: str, tokens: int) -> str:
        """The first `tokens` tokens of a text, or all of it."""
        text = text[: tokens * CHARACTERS_PER_TOKEN]
        offsets = self._offsets(text)
        return text if len(offsets) <= tokens else text[: offsets[tokens - 1][1]]

    def random(self, texts: tuple[str, ...], tokens: int, rng: np.random.Generator, *, lines: bool = False) -> str:
        """A passage of about `tokens` tokens that starts a sentence (or a line), from a text drawn by its length."""
        sizes = np.array([len(text) for text in texts], np.float64)
        text = texts[rng.choice(len(texts), p=sizes / sizes.sum())]
        latest = max(len(text) - tokens * 5, 0)
        start = int(rng.integers(latest + 1))
        if start:
            found = re.compile(r"\n").search(text, start) if lines else _SENTENCE_END.search(text, start)
            start = found.end() if found else start
        return self.head(text[start:], tokens)

    def around(self, text: str, place: int, tokens: int, rng: np.random.Generator) -> str:
        """At most `tokens` tokens of whole lines and sentences that hold character `place` at a random depth."""
        offsets = np.array(self._offsets(text))
        if len(offsets) <= tokens:
            return text
        starts = [0, *(match.end() for match in _PIECE_END.finditer(text))]
        bounds = [*np.searchsorted(offsets[:, 0], starts), len(offsets)]
        first = last = max(index for index, start in enumerate(starts) if start <= place)
        front_share = rng.random()
        while True:
            grow_front = first > 0 and (rng.random() < front_share or last + 1 == len(starts))
            new_first, new_last = (first - 1, last) if grow_front else (first, last + 1)
            if new_last == len(starts) or bounds[new_last + 1] - bounds[new_first] > tokens:
                break
            first, last = new_first, new_last
        begin, end = bounds[first], bounds[last + 1]
        if end - begin > tokens:  # one endless line: centre the place
            begin = max(int(np.searchsorted(offsets[:, 0], place)) - tokens // 2, 0)
            end = min(begin + tokens, len(offsets))
        return text[offsets[begin, 0] : offsets[end - 1, 1]]

    def _offsets(self, text: str) -> list[tuple[int, int]]:
        """First and last character of every token."""
        return encode_offsets(self.tokenizer, text).offsets


def sentence_ends(text: str) -> list[int]:
    """Character positions where a sentence can be inserted: the start, sentence boundaries and the end."""
    return [0, *(match.end() for match in _SENTENCE_END.finditer(text)), len(text)]
