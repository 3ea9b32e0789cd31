"""Made-up trajectories over a world of people who take, drop and give objects (the four reasoning settings).

The agent is a program, so its memory is right by construction; the worse trajectory is then made from it by a known
damage.
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence
from types import MappingProxyType

from eval.suites.rewardbench.twins.text import with_filler
from eval.suites.words import FIRST_NAMES

_OBJECTS = ("key", "lamp", "coin", "map", "rope", "flute")
_ROOMS = ("kitchen", "garden", "library", "cellar", "attic", "study")
_COUNTS = ("none", "one", "two", "three", "four", "five", "six")
_EVENTS = 16
_MOVE = re.compile(r"\b([A-Z]\w+) (took|put down|gave) the (\w+)(?: to ([A-Z]\w+))?\.")
_BLOCKS = re.compile(r"^(?=Step \d+:|Part \d+:|Memories of)", re.MULTILINE)
_NO_WRONG = "none"


def make_pair(rng: random.Random, *, mixed: bool, drop: bool, size: int) -> dict[str, str]:
    """Question, chosen, rejected and subtask of one pair; `size` is the number of background sentences."""
    while True:
        people = rng.sample(FIRST_NAMES, 4)
        person, listing = people[0], rng.random() < 0.5
        sentences = with_filler(rng, _draw_events(rng, people), size)
        parts = rng.choice((2, 3)) if mixed else 1
        chunks = _split(sentences, 2 * parts if mixed else rng.choice((3, 4, 5)))
        question = f"What is {person} carrying?" if listing else f"How many objects is {person} carrying?"
        right = _answer(sentences, person, listing)
        chosen = _run(chunks, parts, person, listing, question)
        if drop:
            cuts = [[*chunks[:n], _without(chunks[n], person), *chunks[n + 1 :]] for n in range(len(chunks))]
            cuts = [cut for cut in cuts if _answer(sum(cut, []), person, listing) != right]
            if not cuts:
                continue
            rejected = _run(rng.choice(cuts), parts, person, listing, question)
        elif rng.random() < 0.5:
            wrong_at = {step: rng.choice(_OBJECTS) for step in rng.sample(range(len(chunks)), rng.choice((1, 2)))}
            rejected = _run(chunks, parts, person, listing, question, wrong_at)
        else:
            rejected = _repeat_a_step(rng, chosen)
        source = "qa8" if listing else "qa7"
        pattern = f"parallel{parts}" if mixed else "sequential"
        context = " ".join(sentences)
        return {
            "question": f"A long text with few clues follows.\n[Context]\n{context}\n\n[Question]\n{question}",
            "chosen": chosen,
            "rejected": rejected,
            "subtask": f"{source}-{pattern}-{'wrong_answer' if drop else 'self_correct'}",
        }


def _draw_events(rng: random.Random, people: Sequence[str]) -> list[str]:
    """Moves in a possible order: only a person who holds an object can put it down or give it away."""
    holder: dict[str, str] = {}
    sentences = []
    for _ in range(_EVENTS):
        who, thing = rng.choice(people), rng.choice(_OBJECTS)
        if thing not in holder:
            holder[thing] = who
            sentences.append(f"{who} took the {thing}.")
        elif rng.random() < 0.4:
            sentences.append(f"{holder.pop(thing)} put down the {thing}.")
        elif holder[thing] != who:
            sentences.append(f"{holder[thing]} gave the {thing} to {who}.")
            holder[thing] = who
        else:
            sentences.append(f"{who} went to the {rng.choice(_ROOMS)}.")
    return sentences


def _held(sentences: Sequence[str], person: str) -> list[str]:
    held = set()
    for who, verb, thing, receiver in _MOVE.findall(" ".join(sentences)):
        if receiver == person or (who == person and verb == "took"):
            held.add(thing)
        elif who == person:
            held.discard(thing)
    return sorted(held)


def _answer(sentences: Sequence[str], person: str, listing: bool) -> str:
    held = _held(sentences, person)
    return (", ".join(held) or "nothing") if listing else _COUNTS[len(held)]


def _about(sentences: Sequence[str], person: str) -> list[str]:
    return [s for s in sentences if (move := _MOVE.search(s)) and person in (move[1], move[4])]


def _without(sentences: Sequence[str], person: str) -> list[str]:
    about = _about(sentences, person)
    return [sentence for sentence in sentences if sentence not in about]


def _split(sentences: list[str], count: int) -> list[list[str]]:
    edges = [len(sentences) * n // count for n in range(count + 1)]
    return [sentences[start:end] for start, end in zip(edges, edges[1:], strict=False)]


def _state(held: Sequence[str], person: str) -> str:
    return f"{person} has {', '.join(f'the {thing}' for thing in held) or 'nothing'}."


def _step(number: int, problem: str, memory: str, section: str, wrong: str, updated: str) -> str:
    return (
        f"Step {number}:\n<problem>{problem}</problem>\n<memory>{memory}</memory>\n<section>{section}</section>\n"
        f"<wrong_updated_memories>{wrong}</wrong_updated_memories>\nUpdated memory: {updated}\n"
    )


def _run(
    chunks: list[list[str]],
    parts: int,
    person: str,
    listing: bool,
    problem: str,
    wrong_at: Mapping[int, str] = MappingProxyType({}),
) -> str:
    """What the agent writes: its memory after every chunk, and the answer.

    `wrong_at` names steps that show a failed try first, and the object about which that try was wrong.
    """
    blocks = []
    size = len(chunks) // parts
    summaries = []
    for part in range(parts):
        if parts > 1:
            blocks.append(f"Part {part + 1}:\n")
        memory = "none"
        read: list[str] = []
        for place in range(part * size, (part + 1) * size):
            read += chunks[place]
            # One part's reader does not know what came before it, so it keeps what happened and not what is held.
            held = _held(read, person)
            updated = " ".join(_about(read, person)) or "nothing happened" if parts > 1 else _state(held, person)
            wrong = _NO_WRONG
            if place in wrong_at:
                wrong = _state(sorted(set(held) ^ {wrong_at[place]}), person)
            blocks.append(_step(place + 1, problem, memory, " ".join(chunks[place]), wrong, updated))
            memory = updated
        summaries.append(memory)
    everything = sum(chunks, [])
    memory = _state(_held(everything, person), person)
    if parts > 1:
        blocks.append("Memories of the parts:\n" + "\n".join(summaries) + f"\nSummary: {memory}\n")
    answer = _answer(everything, person, listing)
    blocks.append(_step(len(chunks) + 1, problem, memory, "None", _NO_WRONG, f"\\boxed{{{answer}}}"))
    lead = f"The text is read in {parts} parts at a time, whose memories are then joined.\n" if parts > 1 else ""
    return lead + "".join(blocks)


def _repeat_a_step(rng: random.Random, trajectory: str) -> str:
    blocks = _BLOCKS.split(trajectory)
    steps = [place for place, block in enumerate(blocks) if block.startswith("Step")]
    source = rng.choice(steps[:-1])
    return "".join([*blocks[: (place := rng.choice(steps[1:]))], blocks[source], *blocks[place:]])
