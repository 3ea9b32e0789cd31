"""RULER tasks of following and counting words (arXiv 2404.06654): `vt`, which names hold a number after a chain of
assignments; `cwe` and `fwe`, the most common words of a list and of a coded text.
"""

from __future__ import annotations

import math
import random
import string

from eval.suites.ruler.draft import Draft, Needle, joined_with_starts
from eval.suites.ruler.niah import NOISE
from eval.suites.ruler.vocabulary import ADJECTIVES, NOUNS, letters, made_up_word, random_number

HOPS = 4
SMALLEST = HOPS + 1
_EXAMPLE_LINES = 8


def make_tracking(size: int, rng: random.Random) -> Draft:
    """A chain of `HOPS` assignments among `size` lines of filler, after a small solved example."""
    example = _chain_problem(_EXAMPLE_LINES, rng, letter_count=3, digits=5)
    draft = _chain_problem(size, rng, letter_count=5, digits=5)
    solved = f"{example.before}{example.context}{example.after} {example.prefix} {' '.join(example.references)}\n\n"
    return Draft(solved + draft.before, draft.context, draft.after, draft.prefix, draft.references, draft.needles)


def _chain_problem(size: int, rng: random.Random, *, letter_count: int, digits: int) -> Draft:
    names: list[str] = []
    while len(names) <= HOPS:
        name = letters(rng, letter_count, string.ascii_uppercase)
        if name not in names:
            names.append(name)
    number = random_number(rng, digits)
    chain = [f"VAR {names[0]} = {number}"]
    chain += [f"VAR {name} = VAR {before}" for before, name in zip(names, names[1:], strict=False)]
    lines = [NOISE] * size
    places = sorted(rng.sample(range(size), len(chain)))
    for offset, (place, line) in enumerate(zip(places, chain, strict=True)):
        lines.insert(place + offset, line)
    context, starts = joined_with_starts(lines, "\n")
    needles = tuple(Needle(line, starts[place + i]) for i, (place, line) in enumerate(zip(places, chain, strict=True)))
    before = "Follow the assignments of variables that are hidden in the text below.\n\n"
    question = f"\nQuestion: Which variables were assigned the value {number} in the text above? Find all of them."
    prefix = (
        f"Answer: By the chain of assignments in the text, {len(names)} variables were assigned the value {number}; "
        "they are:"
    )
    return Draft(before, context, question, prefix, tuple(names), needles)


COMMON = 10
CODED_ANSWERS = 3
_ALPHA = 2.0
_ZETA = math.pi**2 / 6  # of alpha 2
_IGNORED = "..."


def make_common_words(size: int, rng: random.Random, *, short: bool) -> Draft:
    """A numbered list of `size` different words, ten of which come far more often, after a solved example.

    `short` is RULER's form below 4,096 tokens: 6 times against once instead of 30 against 3. Real words are drawn
    first; lists that want more are filled with made-up ones.
    """
    often, seldom = (6, 1) if short else (30, 3)
    example_words, example_often, example_seldom = (20, 3, 1) if short else (40, 10, 3)
    real: list[str] = sorted({*ADJECTIVES, *NOUNS})
    example = _coded_problem(rng, rng.sample(real, example_words), example_often, example_seldom)
    words: list[str] = rng.sample(real, min(size, len(real)))
    known: set[str] = set(real)
    while len(words) < size:
        word = made_up_word(rng)
        if word not in known:
            known.add(word)
            words.append(word)
    draft = _coded_problem(rng, words, often, seldom)
    solution = " ".join(f"{place}. {word}" for place, word in enumerate(example.references, start=1))
    solved = f"{example.before}{example.context}{example.after} {example.prefix} {solution}\n\n"
    return Draft(solved + draft.before, draft.context, draft.after, draft.prefix, draft.references)


def _coded_problem(rng: random.Random, words: list[str], often: int, seldom: int) -> Draft:
    common = words[:COMMON]
    shown = common * often + words[COMMON:] * seldom
    rng.shuffle(shown)
    return Draft(
        "Below is a numbered list of words, in which some words appear more often than others. Remember the ones "
        "that appear most often.\n",
        " ".join(f"{place}. {word}" for place, word in enumerate(shown, start=1)),
        f"\nQuestion: What are the {COMMON} most common words in the list above?",
        f"Answer: The {COMMON} words that appear most often in the list are:",
        tuple(common),
    )


def make_coded_words(size: int, rng: random.Random, *, vocabulary: int) -> Draft:
    """About `size` coded words whose frequencies follow a zeta law; the most frequent is noise and not asked for."""
    words: list[str] = []
    known = set()
    while len(words) < vocabulary:
        word = letters(rng, 6)
        if word not in known:
            known.add(word)
            words.append(word)
    words[0] = _IGNORED
    shown = [word for rank, word in enumerate(words, start=1) for _ in range(int(size * rank**-_ALPHA / _ZETA))]
    rng.shuffle(shown)
    asked = tuple(words[1 : 1 + CODED_ANSWERS])
    return Draft(
        'Read the coded text below and keep track of how often each coded word appears. Ignore the dots "...".\n',
        " ".join(shown),
        f'\nQuestion: Leaving the dots "..." aside, what are the {CODED_ANSWERS} most frequent words in the coded '
        "text above?",
        f"Answer: The {CODED_ANSWERS} most frequent words in the coded text are:",
        asked,
    )


def coded_vocabulary(length: int) -> int:
    """How many different coded words a prompt of `length` tokens draws from."""
    return max((length - 50) // 50, CODED_ANSWERS + 2)
