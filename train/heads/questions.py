"""What the samples of a calibration ask for: facts with distractors, keys and values, chains, labels, running text.

A sample is a text and pieces of it that are scored: answers, or the text's own continuation. What matters is where
sparse attention changes the next token, so the model need not be able to answer.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from train.data import needles
from train.data.corpus import Corpus
from train.data.windows import Windows
from train.heads.settings import Kind

_LINE_END = re.compile(r"\n")
_OPENINGS = (
    "Answer the questions by what the text says.",
    "Some facts are hidden in the following text. Read it and remember them; questions follow.",
    "",
)


class Asked(NamedTuple):
    """A question, the beginning of its answer, and what has to be found."""

    question: str
    lead: str
    answer: str


class Told(NamedTuple):
    """A text and questions about it, or pieces of the text itself (first character, last + 1) that are scored."""

    context: str
    asked: tuple[Asked, ...] = ()
    scored: tuple[tuple[int, int], ...] = ()
    chat: bool = True
    """Whether it may be written as a conversation."""


def tell(kind: Kind, corpus: Corpus, tokens: int, questions: int, windows: Windows, rng: np.random.Generator) -> Told:
    """A text of about `tokens` tokens of one kind, with at most `questions` questions."""
    return _KINDS[kind](corpus, tokens, questions, windows, rng)


def passage(texts: tuple[str, ...], tokens: int, windows: Windows, rng: np.random.Generator, *, lines: bool) -> str:
    """About `tokens` tokens from as many places as it takes; most texts are long enough for one."""
    parts, have = [], 0
    while have < tokens:
        parts.append(windows.random(texts, tokens - have, rng, lines=lines))
        have += max(windows.count(parts[-1]), 1)
    return "\n\n".join(parts)


def _facts(count: int, rng: np.random.Generator) -> list[tuple[str, Asked]]:
    """Sentences of four kinds with their questions, `count` of each kind: each has distractors of its own kind."""
    doors = needles.passkeys(count, rng)
    words = needles.secret_words(count, rng)
    births = needles.birthplaces(count, rng)
    found = []
    for (sentence, question), mark in [
        *((fact, " is ") for fact in doors),
        *((fact, " is ") for fact in words),
        *((fact, " in ") for fact in births),
    ]:
        lead, _, answer = sentence.removesuffix(".").rpartition(mark)
        found.append((sentence, Asked(question, lead + mark.rstrip(), answer)))
    for colour, place in needles.pairs(needles.COLOURS, needles.PLACES, count, rng):
        number = str(rng.integers(1_000_000, 10_000_000))
        name = f"{colour}-{place}"
        sentence = f"One of the special numbers for {name} is: {number}."
        question = f"What is the special number for {name} mentioned in the text?"
        found.append((sentence, Asked(question, f"The special number for {name} mentioned in the text is", number)))
    return found


def _needles(corpus: Corpus, tokens: int, questions: int, windows: Windows, rng: np.random.Generator) -> Told:
    per_kind = int(rng.integers(2, 3 + tokens // 1500))
    facts = [_facts(per_kind, rng)[place] for place in rng.permutation(4 * per_kind)]
    filler = passage(corpus.prose, tokens, windows, rng, lines=False)
    context = needles.scatter(filler, [sentence for sentence, _ in facts], rng)
    opening = _OPENINGS[rng.integers(len(_OPENINGS))]
    return Told(f"{opening}\n\n{context}" if opening else context, _some([asked for _, asked in facts], questions, rng))


def _code_needles(corpus: Corpus, tokens: int, questions: int, windows: Windows, rng: np.random.Generator) -> Told:
    per_kind = 1 + tokens // 2000
    facts = [_facts(per_kind, rng)[place] for place in rng.permutation(4 * per_kind)]
    filler = passage(corpus.code, tokens, windows, rng, lines=True)
    lines = [0, *(match.end() for match in _LINE_END.finditer(filler))]
    parts, begin = [], 0
    for place, (sentence, _) in zip(np.sort(rng.choice(lines, len(facts))), facts, strict=True):
        parts += [filler[begin:place], f"# {sentence}\n"]
        begin = int(place)
    return Told("".join([*parts, filler[begin:]]), _some([asked for _, asked in facts], questions, rng))


def _pairs(corpus: Corpus, tokens: int, questions: int, windows: Windows, rng: np.random.Generator) -> Told:
    """Nothing but lines of keys and values; some of them are asked for."""
    form = ("{key}: {value}", '"{key}": "{value}",', "The number of {key} is {value}.")[rng.integers(3)]
    count = max(tokens // windows.count(form.format(key="silver-station-417", value="68241") + "\n"), 2)
    keys = [
        f"{needles.COLOURS[c]}-{needles.WORDS[w]}-{n}"
        for c, w, n in zip(
            rng.integers(len(needles.COLOURS), size=count),
            rng.integers(len(needles.WORDS), size=count),
            rng.choice(10_000, size=count, replace=count > 10_000),
            strict=True,
        )
    ]
    values = [str(value) for value in rng.integers(10_000, 100_000, size=count)]
    context = "\n".join(form.format(key=key, value=value) for key, value in zip(keys, values, strict=True))
    chosen = rng.choice(count, size=min(questions, count), replace=False)
    asked = [Asked(f"What is the value of {keys[i]}?", f"The value of {keys[i]} is", values[i]) for i in chosen]
    return Told(context, tuple(asked))


def _chains(corpus: Corpus, tokens: int, questions: int, windows: Windows, rng: np.random.Generator) -> Told:
    """Facts that lead to each other: a person's workplace and its city, or variables assigned from one another."""
    filler = passage(corpus.prose, tokens, windows, rng, lines=False)
    if rng.random() < 0.5:
        count = min(int(rng.integers(3, 7)), len(needles.NAMES), len(needles.CITIES))
        names, cities = (rng.choice(source, count, replace=False) for source in (needles.NAMES, needles.CITIES))
        drawn = needles.pairs(needles.COLOURS, needles.PLACES, count, rng)
        places = [f"{colour} {place}" for colour, place in drawn]
        facts = [f"{name} works at the {place}." for name, place in zip(names, places, strict=True)]
        facts += [f"The {place} stands in {city}." for place, city in zip(places, cities, strict=True)]
        asked = [
            Asked(f"In which city does {name} work?", f"{name} works at the", f"{place}. The {place} stands in {city}")
            for name, place, city in zip(names, places, cities, strict=True)
        ]
        return Told(
            needles.scatter(filler, [facts[i] for i in rng.permutation(len(facts))], rng), _some(asked, questions, rng)
        )
    letters = "ABCDEFGHJKLMNPQRSTUVWXYZ"
    facts, asked = [], []
    for _ in range(int(rng.integers(1, 4))):
        value = str(rng.integers(10_000, 100_000))
        chain = ["".join(rng.choice(list(letters), 5)) for _ in range(int(rng.integers(2, 6)))]
        facts.append(
            [f"VAR {chain[0]} = {value}", *(f"VAR {b} = VAR {a}" for a, b in zip(chain, chain[1:], strict=False))]
        )
        question = f"Find all variables that are assigned the value {value} in the text above."
        asked.append(Asked(question, f"The variables that are assigned the value {value} are:", " ".join(chain)))
    # the lines of a chain keep their order, the chains are mixed
    order = rng.permutation(np.repeat(np.arange(len(facts)), [len(chain) for chain in facts]))
    lines = [iter(chain) for chain in facts]
    context = needles.scatter(filler, [f"\n{next(lines[chain])}\n" for chain in order], rng)
    return Told(context, _some(asked, questions, rng))


def _labels(corpus: Corpus, tokens: int, questions: int, windows: Windows, rng: np.random.Generator) -> Told:
    """Snippets of some texts, each labelled with the word of its text; the last labels are scored where they stand."""
    texts = corpus.prose + corpus.code
    classes = min(int(rng.integers(3, 9)), len(texts))
    sources = [texts[i] for i in rng.choice(len(texts), size=classes, replace=False)]
    names = rng.choice(needles.WORDS, size=classes, replace=False)
    text, places, used = "", [], 0
    while used < tokens:
        label = int(rng.integers(classes))
        snippet = " ".join(windows.random((sources[label],), int(rng.integers(16, 48)), rng).split())
        shot = f"Text: {snippet}\nLabel: "
        used += windows.count(shot) + 3
        places.append((len(text) + len(shot), len(text) + len(shot) + len(names[label])))
        text += f"{shot}{names[label]}\n\n"
    return Told(text, scored=tuple(places[-2 * questions :]), chat=False)


def _running(corpus: Corpus, tokens: int, windows: Windows, rng: np.random.Generator, *, code: bool) -> Told:
    text = passage(corpus.code if code else corpus.prose, tokens, windows, rng, lines=code)
    return Told(text, scored=((len(text) * 3 // 4, len(text)),), chat=False)


def _prose(corpus: Corpus, tokens: int, _: int, windows: Windows, rng: np.random.Generator) -> Told:
    return _running(corpus, tokens, windows, rng, code=False)


def _code(corpus: Corpus, tokens: int, _: int, windows: Windows, rng: np.random.Generator) -> Told:
    return _running(corpus, tokens, windows, rng, code=True)


def _some(asked: Sequence[Asked], most: int, rng: np.random.Generator) -> tuple[Asked, ...]:
    return tuple(asked[i] for i in rng.permutation(len(asked))[:most])


_KINDS: dict[Kind, Callable[[Corpus, int, int, Windows, np.random.Generator], Told]] = {
    "needles": _needles,
    "pairs": _pairs,
    "chains": _chains,
    "labels": _labels,
    "code_needles": _code_needles,
    "prose": _prose,
    "code": _code,
}
