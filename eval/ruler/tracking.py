"""Variable tracking (RULER `vt`): which names hold a number after a chain of assignments?"""

from __future__ import annotations

import random
import string

from eval.ruler.draft import Draft, Needle, joined_with_starts
from eval.ruler.niah import NOISE
from eval.ruler.vocabulary import letters, random_number

HOPS = 4
SMALLEST = HOPS + 1
_EXAMPLE_LINES = 8


def make_tracking(size: int, rng: random.Random) -> Draft:
    """A chain of `HOPS` assignments among `size` lines of filler, after a small solved example."""
    example = _problem(_EXAMPLE_LINES, rng, letter_count=3, digits=5)
    draft = _problem(size, rng, letter_count=5, digits=5)
    solved = f"{example.before}{example.context}{example.after} {example.prefix} {' '.join(example.references)}\n\n"
    return Draft(solved + draft.before, draft.context, draft.after, draft.prefix, draft.references, draft.needles)


def _problem(size: int, rng: random.Random, *, letter_count: int, digits: int) -> Draft:
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
