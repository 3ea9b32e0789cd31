"""The samples of a calibration as token ids, made one by one from a seed and a number."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from elastic_jax.errors import DataError
from elastic_jax.text.chat import chat_text
from elastic_jax.text.tokens import Encoded, begin_ids, encode_chat_offsets, encode_offsets
from train.data.corpus import Corpus
from train.data.windows import Windows
from train.heads.questions import Told, tell
from train.heads.settings import GROUPS, HeadsDataConfig, Kind

_LOG = logging.getLogger(__name__)
SCORED = 256
"""Places for scored tokens in a sample."""
_TRIES = 8
_TOKENS_PER_QUESTION = 128
"""Questions become fewer in short samples, so that most of a sample is the text that they are about."""
_CHARACTERS_PER_TOKEN = 4
SHORT_SHARE = 0.4
"""Part of the steps that takes the shortest samples."""
TRAINED_ON, HELD_OUT = 0, 1
"""Sides of the samples: their seeds differ."""


class Batch(NamedTuple):
    """Samples of one length and group, right-padded: NumPy in the pipeline, jax inside the step."""

    input_ids: Any
    """int32 `[B, T]`"""
    lengths: Any
    """int32 `[B]`"""
    positions: Any
    """int32 `[B, SCORED]`: places whose next token is scored."""
    weights: Any
    """float32 `[B, SCORED]`: 1 where a place is used, 0 elsewhere."""
    group: Any
    """int32 scalar: index of the gates that these samples train."""


class Samples:
    """All samples of a calibration; number i is the same on every machine with the same texts and libraries."""

    def __init__(self, corpus: Corpus, tokenizer: Any, data: HeadsDataConfig, *, seed: int, per_task: bool = False):
        """
        Raises:
            DataError: texts that are too short for the longest sample.
        """
        prose = corpus.prose or tuple(text for text, _ in corpus.documented) or corpus.code
        self._corpus = Corpus(prose, corpus.code or prose, corpus.documented)
        for name in ("prose", "code"):
            have = sum(map(len, getattr(self._corpus, name)))
            if have < _CHARACTERS_PER_TOKEN * data.max_tokens:
                raise DataError(
                    f"the {name} of the texts has {have} characters; samples of data.max_tokens {data.max_tokens} want "
                    f"about {_CHARACTERS_PER_TOKEN * data.max_tokens} or more. Add texts, or lower data.max_tokens."
                )
        self._windows = Windows(tokenizer)
        self._tokenizer = tokenizer
        self._data, self._seed, self._per_task = data, seed, per_task
        self._chat = bool(getattr(tokenizer, "chat_template", None))

    def batch(self, number: int, rows: int, length: int, side: int = TRAINED_ON) -> Batch:
        """Samples of `length` tokens at most; their kind follows from the number."""
        kind = self._data.kinds[number % len(self._data.kinds)]
        made = [
            self._one(kind, length, np.random.default_rng([self._seed, side, length, number, row]))
            for row in range(rows)
        ]
        group = GROUPS.index(kind if kind in GROUPS else "retrieval") if self._per_task else 0
        ids, lengths, positions, weights = (np.stack(field) for field in zip(*made, strict=True))
        return Batch(ids, lengths, positions, weights, np.int32(group))

    def _one(self, kind: Kind, length: int, rng: np.random.Generator) -> tuple[Any, ...]:
        chat, seed = self._chat and rng.random() < self._data.chat_share, int(rng.integers(2**31))
        questions = max(min(self._data.questions, length // _TOKENS_PER_QUESTION), 1)
        room = length - 64
        for _ in range(_TRIES):
            told = tell(kind, self._corpus, room, questions, self._windows, np.random.default_rng([seed, room]))
            encoded, spans = self._written(told, chat=chat and told.chat)
            if len(encoded.ids) <= length:
                break
            room = max(room - (len(encoded.ids) - length) - 8, 1)
        else:
            raise DataError(f"no {kind} sample of {length} tokens could be made of these texts; raise data.min_tokens.")
        ids = np.zeros(length, np.int32)
        ids[: len(encoded.ids)] = encoded.ids
        places = _places(encoded, spans)
        if not len(places):
            raise DataError(f"a {kind} sample of {length} tokens has nothing to score; raise data.min_tokens.")
        positions, weights = np.zeros(SCORED, np.int32), np.zeros(SCORED, np.float32)
        if len(places) > SCORED:
            places = places[np.linspace(0, len(places) - 1, SCORED).round().astype(int)]
        positions[: len(places)], weights[: len(places)] = places, 1.0
        return ids, np.int32(len(encoded.ids)), positions, weights

    def _written(self, told: Told, *, chat: bool) -> tuple[Encoded, list[tuple[int, int]]]:
        """Tokens of the whole sample, and the characters that are scored."""
        if chat:
            turns = []
            for place, (question, lead, answer) in enumerate(told.asked):
                asked = f"{told.context}\n\n{question}" if place == 0 else question
                turns += [{"role": "user", "content": asked}, {"role": "assistant", "content": f"{lead} {answer}."}]
            whole = chat_text(self._tokenizer, turns)
            spans, begin = [], 0
            for _, lead, answer in told.asked:
                begin = whole.text.index(f"{lead} {answer}.", begin) + len(lead) + 1
                spans.append((begin, begin + len(answer)))
            return encode_chat_offsets(self._tokenizer, whole), spans
        text, spans = told.context, list(told.scored)
        for question, lead, answer in told.asked:
            text += f"\n\nQuestion: {question}\nAnswer: {lead}"
            spans.append((len(text) + 1, len(text) + 1 + len(answer)))
            text += f" {answer}."
        first = begin_ids(self._tokenizer)
        ids, offsets = encode_offsets(self._tokenizer, text)
        return Encoded([*first, *ids], [*((0, 0) for _ in first), *offsets]), spans

    def digest(self) -> str:
        """Fingerprint of the texts and of how the tokenizer cuts them."""
        hasher = hashlib.sha256()
        for text in (*self._corpus.prose, *self._corpus.code):
            hasher.update(text.encode("utf-8", "surrogatepass"))
        hasher.update(self.batch(0, 1, self._data.sizes[0]).input_ids.tobytes())
        return hasher.hexdigest()


def _places(encoded: Encoded, spans: Sequence[tuple[int, int]]) -> np.ndarray:
    """Places of the tokens before those that hold a character of a span."""
    first, last = np.array(encoded.offsets).T
    inside = np.zeros(len(first), bool)
    for begin, end in spans:
        inside |= (first < end) & (last > begin)
    places = np.flatnonzero(inside) - 1
    return places[places >= 0]


class Batches:
    """The batches of a run, which goes on where it was stopped.

    The first ones are short, which is enough to close most gates; then all longer lengths take turns.
    """

    def __init__(self, samples: Samples, sizes: Sequence[int], *, rows: int, steps: int):
        self._samples, self._sizes, self._rows, self._steps, self._next = samples, sizes, rows, steps, 0

    def __next__(self) -> Batch:
        number, self._next = self._next, self._next + 1
        shortest, *longer = self._sizes
        late = number - int(SHORT_SHARE * self._steps)
        length = shortest if late < 0 or not longer else longer[late % len(longer)]
        # kinds move on after all lengths, so that each kind meets each length
        turn = number if late < 0 or not longer else late // len(longer)
        return self._samples.batch(turn, self._rows, length)

    def get_state(self) -> dict[str, int]:
        """What `set_state` needs to go on."""
        return {"next": self._next}

    def set_state(self, state: dict[str, int]) -> None:
        """Goes on where `get_state` was asked."""
        self._next = state["next"]
