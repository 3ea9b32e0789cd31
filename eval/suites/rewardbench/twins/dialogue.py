"""Made-up conversations and the memory stores that two systems keep of them (the four dialogue settings).

The worse store comes from the same system with two or more turns in a row left out.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterable
from dataclasses import dataclass

from eval.harness.provenance import text_digest
from eval.suites.rewardbench.twins.text import filler
from eval.suites.words import CITIES, COLOURS, FIRST_NAMES

_JOBS = ("baker", "pilot", "nurse", "tailor", "painter", "lawyer", "gardener", "welder", "teacher", "surgeon")
_INSTRUMENTS = ("violin", "flute", "cello", "trumpet", "harp", "guitar", "piano", "drum", "oboe", "banjo")
_PETS = ("parrot", "rabbit", "cat", "dog", "turtle", "hamster", "pony", "goldfish", "canary", "lizard")


@dataclass(frozen=True)
class Attribute:
    """Something that a person can have: how they say it, how a store notes it, and how one asks for it."""

    said: str
    noted: str
    asked: str
    values: tuple[str, ...]


ATTRIBUTES = (
    Attribute("live in", "lives in", "In which city does {} live now?", tuple(CITIES)),
    Attribute("work as", "works as", "What is the job of {} now?", _JOBS),
    Attribute("drive a car in", "drives a car in", "Which colour has the car of {} now?", tuple(COLOURS)),
    Attribute("play the", "plays the", "Which instrument does {} play now?", _INSTRUMENTS),
    Attribute("keep as a pet a", "keeps as a pet a", "Which pet does {} keep now?", _PETS),
)
_BY_NOTE = {attribute.noted: attribute for attribute in ATTRIBUTES}
_SAID = re.compile(rf"Speaker (\w+) says: I ({'|'.join(a.said for a in ATTRIBUTES)}) (\w+) now\.")

type _Facts = dict[tuple[str, str], str]
"""Value by (person, how it is noted)."""


def make_pair(rng: random.Random, *, tags: bool, outcome: bool, size: int) -> dict[str, str]:
    """Question, chosen, rejected and subtask of one pair.

    Args:
        tags: notes with context, keywords and tags (A-Mem), or a flat list of facts (Mem0).
        outcome: the worse store lacks the answer; otherwise it holds the answer and lacks something else.
        size: turns of small talk.
    """
    while True:
        speakers: list[str] = rng.sample(FIRST_NAMES, 2)
        asked = (rng.choice(speakers), rng.choice(ATTRIBUTES).noted)
        turns = _draw_turns(rng, speakers, size)
        facts = _facts(turns)
        worse = [
            kept
            for start, end in _spans(rng, turns)
            if (without := _facts(kept := turns[:start] + turns[end:])) != facts
            and (without.get(asked) != facts[asked]) == outcome
        ]
        if worse:
            break
    render = _notes if tags else _store
    question = _BY_NOTE[asked[1]].asked.format(asked[0])
    return {
        "question": "Conversation:\n" + "\n".join(turns) + f"\nQuery: {question}",
        "chosen": render(turns),
        "rejected": render(rng.choice(worse)),
        "subtask": f"{'a-mem' if tags else 'mem0'}_locomo_{'easy' if outcome else 'hard'}",
    }


def _draw_turns(rng: random.Random, speakers: list[str], size: int) -> list[str]:
    """Every speaker tells every fact once, and about half of them again with another value, in small talk."""
    told = []
    for who in speakers:
        for attribute in ATTRIBUTES:
            for value in rng.sample(attribute.values, rng.choice((1, 2))):
                told.append((who, f"I {attribute.said} {value} now."))
    rng.shuffle(told)
    places = set(rng.sample(range(len(told) + size), len(told)))
    facts = iter(told)
    turns = []
    for number in range(len(told) + size):
        who, says = next(facts) if number in places else (rng.choice(speakers), filler(rng))
        day, minute = divmod(number, 8 * 60)
        hour = f"{9 + minute // 60}:{minute % 60:02d}"
        turns.append(f"[{hour} on day {day + 1}] Speaker {who} says: {says}")
    return turns


def _facts(turns: Iterable[str]) -> _Facts:
    """The facts that hold at the end of these turns."""
    noted = {attribute.said: attribute.noted for attribute in ATTRIBUTES}
    return {(who, noted[said]): value for who, said, value in _SAID.findall("\n".join(turns))}


def _spans(rng: random.Random, turns: list[str]) -> list[tuple[int, int]]:
    """Runs of two to four turns to leave out, one around each turn that tells a fact."""
    spans = []
    for place, turn in enumerate(turns):
        if _SAID.search(turn):
            length = rng.choice((2, 3, 4))
            start = max(0, min(place - rng.randrange(length), len(turns) - length))
            spans.append((start, start + length))
    return spans


def _noted(turns: list[str]) -> list[tuple[str, str, str, str]]:
    """Time, person, note and value of every fact that holds, in the order in which it was told."""
    times = {}
    for turn in turns:
        for who, said, value in _SAID.findall(turn):
            times[who, said, value] = turn[1 : turn.index("]")]
    said = {attribute.noted: attribute.said for attribute in ATTRIBUTES}
    return [(times[who, said[noted], value], who, noted, value) for (who, noted), value in _facts(turns).items()]


def _store(turns: list[str]) -> str:
    entries = []
    for time, who, noted, value in _noted(turns):
        memory = f"{who} {noted} {value}."
        digest = text_digest(memory)
        entries.append({"id": digest[:8], "memory": memory, "hash": digest, "created_at": time, "user_id": who})
    return repr(entries)


def _notes(turns: list[str]) -> str:
    return "\n".join(
        f"[conversation_{number}:]\nContext: {who} {noted} {value}.\nKeywords: {who}, {value}\nTags: {noted}, {time}"
        for number, (time, who, noted, value) in enumerate(_noted(turns), start=1)
    )
