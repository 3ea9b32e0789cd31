"""Short-to-long synthesis: a judgement made on a short text becomes one on a long text (arXiv 2510.06915, stage I).

A strong judge reads the critical chunks only. For training they lie among irrelevant ones, in a prompt of a wanted
number of tokens, and the judgement is kept unchanged.
"""

from __future__ import annotations

import string
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from elastic_jax.errors import ConfigError
from elastic_jax.text.tokens import encode_text
from train.reward.data.records import Message
from train.reward.data.tokens import prompt_tokens
from train.reward.synthesis.perspectives import PERSPECTIVES, judge_prompt

GAP = "\n\n"
"""Between chunks."""
_SMALLEST = 16
"""Tokens of filler below which no further piece is added."""
_GAP_TOKENS = 4
_TAG_CHARACTERS = string.ascii_uppercase + string.digits


@dataclass(frozen=True)
class Chunk:
    """A part of the text that an answer is about."""

    text: str
    critical: bool = True
    """The judgement rests on it; the others are filler from the same source."""


@dataclass(frozen=True)
class ShortSample:
    """An answer with the question and the text that a judge needs."""

    perspective: str
    """A name of `PERSPECTIVES`."""
    question: str
    response: str
    """The answer that is judged."""
    chunks: tuple[Chunk, ...]
    reference: str | None = None
    """An answer known to be right; shown to the judge of the short text only."""

    @property
    def critical(self) -> tuple[str, ...]:
        return tuple(chunk.text for chunk in self.chunks if chunk.critical)


@dataclass(frozen=True)
class LongPrompt:
    """A judge's prompt on a long text."""

    prompt: tuple[Message, ...]
    context: str
    """Part of the prompt that holds filler and critical chunks."""
    tokens: int
    """Of the whole prompt in the chat template, up to where the judgement begins."""
    places: tuple[tuple[int, int], ...]
    """First and last + 1 character of each critical chunk in `context`."""
    insert_index: int
    """Pieces of filler before the first critical chunk."""
    tag: str | None


def short_prompt(sample: ShortSample) -> tuple[Message, ...]:
    """What the strong judge is asked: the critical chunks only, with the rubric and the reference."""
    return judge_prompt(
        PERSPECTIVES[sample.perspective],
        context=GAP.join(sample.critical),
        question=sample.question,
        response=sample.response,
        rubric=True,
        reference=sample.reference,
    )


def lengthen(
    sample: ShortSample,
    filler: Callable[[int], str],
    *,
    target_tokens: int,
    reserve: int,
    tokenizer: Any,
    rng: np.random.Generator,
) -> LongPrompt | None:
    """The judge's prompt with filler up to `target_tokens - reserve` tokens; None if it is longer without any.

    In a tagged perspective the critical chunks stay together between the tags; in the others each lies at a place of
    its own. Their order is kept, and so is their text.

    Args:
        filler: gives a text of about so many tokens, at most.
        reserve: tokens left free for the judgement.

    Raises:
        ConfigError: no room between `target_tokens` and `reserve`.
    """
    limit = target_tokens - reserve
    if limit < 1:
        raise ConfigError(f"target_tokens {target_tokens} leaves nothing beside a reserve of {reserve} tokens.")
    tag = _tag(rng, sample) if PERSPECTIVES[sample.perspective].tagged else None
    blocks = [f"<{tag}>\n{GAP.join(sample.critical)}\n</{tag}>"] if tag else list(sample.critical)
    own = [chunk.text for chunk in sample.chunks if not chunk.critical]
    shares = np.sort(rng.random(len(blocks)))

    def built(pieces: Sequence[str]) -> LongPrompt:
        context, first = _merged(blocks, pieces, shares)
        prompt = judge_prompt(
            PERSPECTIVES[sample.perspective],
            context=context,
            question=sample.question,
            response=sample.response,
            tag=tag,
        )
        places = _places(sample.critical, context)
        return LongPrompt(prompt, context, prompt_tokens(tokenizer, prompt), places, first, tag)

    made = built([])
    if made.tokens > limit:
        return None
    pieces: list[str] = []
    waiting = [own[place] for place in rng.permutation(len(own))]
    used = made.tokens
    while limit - used >= _SMALLEST:
        of_sample = bool(waiting)
        piece = waiting.pop() if of_sample else filler(limit - used - _GAP_TOKENS)
        cost = len(encode_text(tokenizer, GAP + piece, begin=False))
        if not piece.strip() or cost > limit - used:
            if of_sample:
                continue
            break
        pieces.insert(int(rng.integers(len(pieces) + 1)), piece)
        used += cost
    made = built(pieces)
    while made.tokens > limit:  # pieces can take a few tokens more together than apart
        pieces.pop()
        made = built(pieces)
    return made


def _merged(blocks: Sequence[str], pieces: Sequence[str], shares: np.ndarray) -> tuple[str, int]:
    """Blocks in their order among the pieces, and how many pieces lie before the first block."""
    before = np.floor(shares * (len(pieces) + 1)).astype(int)
    parts: list[str] = []
    for index in range(len(pieces) + 1):
        parts += [block for block, place in zip(blocks, before, strict=True) if place == index]
        parts += pieces[index : index + 1]
    return GAP.join(parts), int(before[0])


def _places(critical: Sequence[str], context: str) -> tuple[tuple[int, int], ...]:
    places, begin = [], 0
    for text in critical:
        begin = context.index(text, begin)
        places.append((begin, begin + len(text)))
        begin += len(text)
    return tuple(places)


def _tag(rng: np.random.Generator, sample: ShortSample) -> str:
    """Two to four letters and digits, a letter first, that the texts have no tag of."""
    while True:
        size = int(rng.integers(1, 4))
        tag = str(rng.choice(list(string.ascii_uppercase))) + "".join(rng.choice(list(_TAG_CHARACTERS), size))
        if not any(f"<{tag}>" in chunk.text for chunk in sample.chunks):
            return tag
