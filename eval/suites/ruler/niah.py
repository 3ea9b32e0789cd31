"""Needles in a haystack: the eight retrieval tasks of RULER (arXiv 2404.06654), from their description."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from elastic_jax.errors import DataError
from eval.suites.ruler.draft import Draft, Needle, joined_with_starts
from eval.suites.ruler.vocabulary import Unique

NOISE = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again."
"""One line of the filler of the pass-key papers."""

_DEPTHS = [round(100 * i / 39) for i in range(40)]
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+(?=[A-Z0-9\"'(])")
"""After a full stop, question or exclamation mark, before a capital, digit, quote or bracket."""


@dataclass(frozen=True)
class NiahForm:
    """What a task hides, how often, and in which kind of text."""

    haystack: Literal["noise", "essay", "needle"]
    keys: Literal["words", "uuids"]
    values: Literal["numbers", "uuids"]
    inserted: int = 1
    per_key: int = 1
    asked: int = 1


FORMS = {
    "niah_single_1": NiahForm("noise", "words", "numbers"),
    "niah_single_2": NiahForm("essay", "words", "numbers"),
    "niah_single_3": NiahForm("essay", "words", "uuids"),
    "niah_multikey_1": NiahForm("essay", "words", "numbers", inserted=4),
    "niah_multikey_2": NiahForm("needle", "words", "numbers"),
    "niah_multikey_3": NiahForm("needle", "uuids", "uuids"),
    "niah_multivalue": NiahForm("essay", "words", "numbers", per_key=4),
    "niah_multiquery": NiahForm("essay", "words", "numbers", inserted=4, asked=4),
}


class Essay:
    """The words of a running text, which starts again after its last word."""

    def __init__(self, texts: Sequence[str]):
        self.words = " ".join(texts).split()
        if len(self.words) < 100:
            raise DataError(f"the haystack has {len(self.words)} words; want prose of 100 or more.")

    def sentences(self, count: int) -> list[str]:
        """The first `count` words, cut into sentences."""
        times, rest = divmod(count, len(self.words))
        return _SENTENCE_END.split(" ".join(self.words * times + self.words[:rest]))


def smallest_size(form: NiahForm) -> int:
    """Size of the shortest haystack in which every needle has a place of its own."""
    return {"noise": 1, "needle": 1, "essay": 100}[form.haystack]


def make_niah(form: NiahForm, size: int, rng: random.Random, essay: Essay | None) -> Draft:
    """A prompt over `size` lines of filler, or words of the essay."""
    keys, values = Unique(rng, form.keys), Unique(rng, form.values)
    facts = {keys.draw(): [values.draw() for _ in range(form.per_key)] for _ in range(form.inserted)}
    needles = [statement(form.values, key, value) for key, found in facts.items() for value in found]
    rng.shuffle(needles)
    asked = rng.sample(list(facts), form.asked)
    if form.haystack == "essay":
        assert essay is not None
        sentences = essay.sentences(size)
        depths = sorted(rng.sample(_DEPTHS, len(needles)))
        places = [len(sentences) * depth // 100 for depth in depths]
        separator = " "
    else:
        filler = form.haystack == "noise"
        sentences = [NOISE if filler else statement(form.values, keys.draw(), values.draw()) for _ in range(size)]
        places = sorted(rng.sample(range(size), len(needles)))
        separator = "\n"
    for place, needle in reversed(list(zip(places, needles, strict=True))):
        sentences.insert(place, needle)
    context, starts = joined_with_starts(sentences, separator)
    hidden = tuple(Needle(text, starts[place + i]) for i, (place, text) in enumerate(zip(places, needles, strict=True)))
    return _worded(form, context, asked, [value for key in asked for value in facts[key]], hidden)


def statement(kind: str, key: str, value: str) -> str:
    """The sentence that says the value of a key."""
    return f"One of the special magic {kind} for {key} is: {value}."


def _worded(
    form: NiahForm, context: str, asked: Sequence[str], references: Sequence[str], needles: tuple[Needle, ...]
) -> Draft:
    single = form.asked * form.per_key == 1
    kind = form.values.removesuffix("s") if single else form.values
    query = ", ".join(asked[:-1]) + ", and " + asked[-1] if len(asked) > 1 else asked[0]
    hidden, verb, remember = (
        ("A special magic " + kind, "is", "it") if single else ("Special magic " + kind, "are", "them")
    )
    before = (
        f"{hidden} {verb} hidden in the text below. Read the text and remember {remember}: a question about the "
        f"{kind} follows at its end.\n"
    )
    subject = f"the special magic {kind} for {query} mentioned in the text"
    return Draft(
        before,
        context,
        f"\nWhat {verb} {'' if single else 'all '}{subject}?",
        f"{subject[0].upper()}{subject[1:]} {verb}" if single else f"All {subject} {verb}",
        tuple(references),
        needles,
    )
