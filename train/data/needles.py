"""Retrieval records: facts hidden at random depths of real text, and questions that only they answer."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from elastic_jax.text.split import on_side, split_of
from train.data.records import MULTIHOP_QA, SINGLE_QA, Record
from train.data.windows import Windows, sentence_ends


def _training(words: str) -> tuple[str, ...]:
    return on_side(words.split(), "train")


COLOURS = _training("red blue green yellow white black silver golden purple orange brown grey pink violet amber ivory")
OBJECTS = _training(
    "door gate chest box safe locker cabinet vault drawer trunk garage cellar tower workshop office archive barn shed"
)
NAMES = _training(
    "Marta Oskar Lena Viktor Paula Hugo Irene Felix Nadia Simon Clara Bruno Greta Anton Rosa Emil Judith Karl Selma "
    "Otto Ingrid Leon Tilda Max Vera Ivan Elsa Ruben Dora Kaspar Mina Jonas Alma Erik Nora Axel Edith Rolf Ida Stefan"
)
CITIES = _training(
    "Lisbon Oslo Cairo Lima Kyoto Vienna Dublin Prague Quito Tunis Havana Riga Nairobi Bergen Seville Porto Lyon "
    "Krakow Ghent Turin Osaka Perth Denver Boston Austin Madras Zurich Malta Corfu Bremen Gdansk Leeds York Calais"
)
WORDS = _training(
    "lantern harbor velvet copper meadow thunder pebble orchard cinnamon falcon glacier ribbon saddle walnut marble "
    "compass feather canyon barley candle dolphin ember forest garnet hammer island jasmine kettle ladder magnet "
    "nectar olive paddle quartz raven shelter timber umbrella violin willow anchor basket cactus dragon engine"
)
PLACES = _training("mill bakery library theatre school hospital museum bank hotel station brewery printworks dairy inn")

Fact = tuple[str, str]
"""(sentence to hide, phrase that asks for it); the sentence is also its answer."""


def _number(rng: np.random.Generator) -> str:
    while True:
        number = str(rng.integers(10_000, 100_000))
        if split_of(number) == "train":
            return number


def pairs(left: Sequence[str], right: Sequence[str], count: int, rng: np.random.Generator) -> list[tuple[str, str]]:
    """Distinct combinations of two word lists."""
    picks = rng.choice(len(left) * len(right), size=count, replace=False)
    return [(left[pick // len(right)], right[pick % len(right)]) for pick in picks]


def passkeys(count: int, rng: np.random.Generator) -> list[Fact]:
    """Five-digit numbers of coloured things."""
    return [
        (f"The pass key of the {colour} {thing} is {_number(rng)}.", f"What is the pass key of the {colour} {thing}?")
        for colour, thing in pairs(COLOURS, OBJECTS, count, rng)
    ]


def secret_words(count: int, rng: np.random.Generator) -> list[Fact]:
    """A word for each of several people."""
    names, words = (rng.choice(source, count, replace=False) for source in (NAMES, WORDS))
    return [
        (f"The secret word of {name} is {word}.", f"What is the secret word of {name}?")
        for name, word in zip(names, words, strict=True)
    ]


def birthplaces(count: int, rng: np.random.Generator) -> list[Fact]:
    """A natural sentence about each of several people."""
    names, cities = (rng.choice(source, count, replace=False) for source in (NAMES, CITIES))
    return [
        (f"{name} was born in {city}.", f"Where was {name} born?") for name, city in zip(names, cities, strict=True)
    ]


KINDS: tuple[Callable[[int, np.random.Generator], list[Fact]], ...] = (passkeys, secret_words, birthplaces)


def single_hop(prose: tuple[str, ...], tokens: int, windows: Windows, rng: np.random.Generator) -> Record:
    """One to three questions about facts of one kind among others of that kind, in about `tokens` tokens of prose."""
    facts = KINDS[rng.integers(len(KINDS))](int(rng.integers(4, 8)), rng)
    asked = [facts[i] for i in rng.choice(len(facts), size=int(rng.integers(1, 4)), replace=False)]
    context = scatter(windows.random(prose, tokens, rng), [sentence for sentence, _ in facts], rng)
    question = " ".join(question for _, question in asked)
    return Record(context, question, " ".join(sentence for sentence, _ in asked), SINGLE_QA, is_prefix=False)


def two_hops(prose: tuple[str, ...], tokens: int, windows: Windows, rng: np.random.Generator) -> Record:
    """Person -> workplace -> city: the second fact can only be found by what the first one says."""
    count = int(rng.integers(3, 5))
    names, cities = (rng.choice(source, count, replace=False) for source in (NAMES, CITIES))
    places = [f"{colour} {place}" for colour, place in pairs(COLOURS, PLACES, count, rng)]
    first = [f"{name} works at the {place}." for name, place in zip(names, places, strict=True)]
    second = [f"The {place} stands in {city}." for place, city in zip(places, cities, strict=True)]
    facts = [*first, *second]
    context = scatter(windows.random(prose, tokens, rng), [facts[i] for i in rng.permutation(len(facts))], rng)
    pick = int(rng.integers(count))
    question = f"In which city does {names[pick]} work?"
    return Record(context, question, f"{first[pick]} {second[pick]}", MULTIHOP_QA, is_prefix=False)


def scatter(text: str, sentences: Sequence[str], rng: np.random.Generator) -> str:
    """Inserts sentences, in the order given, at random sentence boundaries of a text."""
    places = np.sort(rng.choice(sentence_ends(text), size=len(sentences), replace=True))
    parts, begin = [], 0
    for place, sentence in zip(places, sentences, strict=True):
        parts += [text[begin:place].strip(), sentence]
        begin = int(place)
    parts.append(text[begin:].strip())
    return " ".join(part for part in parts if part)
