"""Made-up long texts that follow an instruction or break it (the two generation settings).

Three kinds: a tower with requirements for floors, a route through a network of towns, and an outline whose points the
text must state.
"""

from __future__ import annotations

import random
import re

from eval.suites.rewardbench.twins.text import filler
from eval.suites.words import THINGS

_FEATURES = ("library", "bakery", "gym", "garden", "cinema", "clinic", "workshop", "gallery", "pool", "school")
_TRANSPORT = ("train", "bus", "boat", "plane")
_SYLLABLES = [consonant + vowel for consonant in "bdfgklmnprstvz" for vowel in "aeiou"]


def make_pair(rng: random.Random, *, parallel: bool, size: int) -> dict[str, str]:
    """Question, chosen, rejected and subtask of one pair; routes depend on every earlier step, so never parallel."""
    kinds = [(_tower, "longgenbench_short"), (_outline, "longeval_blog")]
    make, source = rng.choice(kinds if parallel else [*kinds, (_route, "longproc_path")])
    question, chosen, rejected = make(rng, parallel, size)
    pattern = "parallel" if parallel else "sequential"
    return {"question": question, "chosen": chosen, "rejected": rejected, "subtask": f"{source}_{pattern}"}


def _tower(rng: random.Random, parallel: bool, size: int) -> tuple[str, str, str]:
    floors = 12 + size // 2
    once, ranged, periodic = rng.sample(_FEATURES, 3), rng.sample(_FEATURES, 2), rng.choice(_FEATURES)
    rules = [f"Floor {rng.randint(1, floors)} has a {feature}." for feature in once]
    for feature in ranged:
        start = rng.randint(1, floors - 4)
        rules.append(f"Floors {start} to {start + rng.randint(2, 4)} have a {feature}.")
    start = rng.randint(1, 4)
    rules.append(f"From floor {start} on, every {rng.randint(3, 5)} floors there is a {periodic}.")
    question = (
        f"Plan a tower of {floors} floors, with a paragraph for each floor that begins with its number.\n"
        + "\n".join(rules)
    )
    everything = set(required(question))
    losses = {rule: everything - set(required(question.replace(rule, ""))) for rule in rules}
    missing = losses[rng.choice([rule for rule in rules if losses[rule]])]
    body = [filler(rng) for _ in range(floors)]

    def write(features: set[tuple[str, int]]) -> str:
        lines = []
        for floor in range(1, floors + 1):
            has = " ".join(f"It has a {feature}." for feature in sorted(f for f, n in features if n == floor))
            lead = f" Above floor {floor - 1}." if floor > 1 and not parallel else ""
            lines.append(f"#*# Floor {floor}:{lead} {body[floor - 1]} {has}".rstrip())
        return "\n".join(lines)

    return question, write(everything), write(everything - missing)


def required(question: str) -> list[tuple[str, int]]:
    """(feature, floor) of every requirement that the instruction of a tower states."""
    found = re.search(r"tower of (\d+) floors", question)
    floors = int(found[1]) if found else 0
    wanted = [(feature, int(n)) for n, feature in re.findall(r"^Floor (\d+) has a (\w+)\.", question, re.MULTILINE)]
    for start, end, feature in re.findall(r"^Floors (\d+) to (\d+) have a (\w+)\.", question, re.MULTILINE):
        wanted += [(feature, n) for n in range(int(start), int(end) + 1)]
    for start, step, feature in re.findall(r"From floor (\d+) on, every (\d+) floors there is a (\w+)\.", question):
        wanted += [(feature, n) for n in range(int(start), floors + 1, int(step))]
    return wanted


def _route(rng: random.Random, parallel: bool, size: int) -> tuple[str, str, str]:
    hops = rng.randint(6, 10)
    names = ["".join(rng.choices(_SYLLABLES, k=3)).capitalize() for _ in range(2 * hops + size)]
    towns = list(dict.fromkeys(names))
    path, others = towns[: hops + 1], towns[hops + 1 :]
    edges = {town: (after, rng.choice(_TRANSPORT)) for town, after in zip(path, path[1:], strict=False)}
    for town in [*others, path[-1]]:
        edges[town] = (rng.choice([name for name in rng.sample(towns, 2) if name != town]), rng.choice(_TRANSPORT))
    lines = [f"From {town} one goes to {after} by {how}." for town, (after, how) in edges.items()]
    rng.shuffle(lines)
    question = (
        "\n".join(lines) + f"\nThe lines above are a network of towns. Write the route from {path[0]} to {path[-1]}."
    )
    gold = [f"From {town} one goes to {edges[town][0]} by {edges[town][1]}." for town in path[:-1]]
    detour = [path[0], *rng.sample(others, hops - 1), path[-1]]
    wrong = [
        f"From {town} one goes to {after} by {rng.choice(_TRANSPORT)}."
        for town, after in zip(detour, detour[1:], strict=False)
    ]
    return question, "\n".join(gold), "\n".join(wrong)


def _outline(rng: random.Random, parallel: bool, size: int) -> tuple[str, str, str]:
    sections = [
        [f"The {thing} of house {10 * number + place} is {rng.randint(2, 99)} years old." for place, thing in things]
        for number in range(1, 5)
        if (things := list(enumerate(rng.sample(THINGS, 3))))
    ]
    question = "Write a report with these sections, and state every point in its section.\n" + "\n".join(
        f"Section {number}\n" + "\n".join(f"- {point}" for point in points) for number, points in enumerate(sections, 1)
    )
    points = sum(sections, [])
    changed = set(rng.sample(points, rng.randint(1, 4)))
    body = {number: [filler(rng) for _ in range(1 + size // 4)] for number in range(1, 5)}

    def write(contradicted: set[str]) -> str:
        texts = []
        for number, stated in enumerate(sections, 1):
            lead = f"Section {number}." + (" As the section before said, more follows." if not parallel else "")
            said = [_contradict(point) if point in contradicted else point for point in stated]
            texts.append(" ".join([lead, *said, *body[number]]))
        return "\n\n".join(texts)

    return question, write(set()), write(changed)


def _contradict(point: str) -> str:
    return re.sub(r"is (\d+) years", lambda found: f"is {int(found[1]) + 100} years", point)
