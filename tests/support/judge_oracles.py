"""Judges of the made-up reward benchmarks that check the texts: they do not see which answer is the better one."""

from __future__ import annotations

import re
from collections.abc import Sequence

from judge_runs import shown_answers

from eval.samples import Prompt
from eval.suites.rewardbench.items import JudgeItem
from eval.suites.rewardbench.memory import DIALOGUE, REASONING
from eval.suites.rewardbench.twins.dialogue import ATTRIBUTES
from eval.suites.rewardbench.twins.generation import required

_COUNTS = ("none", "one", "two", "three", "four", "five", "six")
_HOP = re.compile(r"From (\w+) one goes to (\w+) by (\w+)\.")


def long_oracle(prompt: Prompt) -> tuple[int, ...]:
    """Rank of every answer by how many facts of the text it has right."""
    facts = _keeps(prompt.sample.fields["item"].question)
    right = [len(facts & _keeps(answer)) for answer in shown_answers(prompt)]
    return tuple(sum(other > mine for other in right) for mine in right)


def memory_oracle(prompt: Prompt) -> tuple[int, int]:
    """The answer with fewer flaws is the better one."""
    first, second = (flaws(prompt.sample.fields["item"], answer) for answer in shown_answers(prompt))
    return (1, 0) if second < first else (0, 1)


def flaws(item: JudgeItem, answer: str) -> int:
    """What is wrong with a trajectory, a store of memories or a text; a wrong end counts 100."""
    group = item.axes["group"]
    return (_of_reasoning if group == REASONING else _of_dialogue if group == DIALOGUE else _of_text)(
        item.question, answer
    )


def _keeps(text: str) -> set[tuple[str, str]]:
    return set(re.findall(r"\b([A-Z]\w+) keeps the (\w+)\.", text))


def _of_reasoning(question: str, trajectory: str) -> int:
    """A wrong answer, every attempt that is shown to be wrong, and every step that is shown twice."""
    context, _, asked = question.partition("\n\n[Question]\n")
    listing = asked.startswith("What")
    held = _held(context, asked.split()[2 if listing else 4])
    right = (", ".join(held) or "nothing") if listing else _COUNTS[len(held)]
    answers = re.findall(r"\\boxed\{(.*?)\}", trajectory)
    attempts = re.findall(r"^<wrong_updated_memories>(.*?)</wrong_updated_memories>", trajectory, re.MULTILINE)
    blocks = re.split(r"^(?=Step \d+:|Part \d+:|Memories of)", trajectory, flags=re.MULTILINE)
    repeated = len(blocks) - len({block.strip() for block in blocks})
    return 100 * (answers[-1:] != [right]) + sum(attempt != "none" for attempt in attempts) + repeated


def _held(text: str, person: str) -> Sequence[str]:
    moves = re.findall(r"\b([A-Z]\w+) (took|put down|gave) the (\w+)(?: to ([A-Z]\w+))?\.", text)
    held = set()
    for who, verb, thing, receiver in moves:
        if receiver == person or (who == person and verb == "took"):
            held.add(thing)
        elif who == person:
            held.discard(thing)
    return sorted(held)


def _of_dialogue(question: str, store: str) -> int:
    """Facts of the conversation that the store lacks or has out of date; the one asked for counts 100 more."""
    conversation, _, query = question.rpartition("Query: ")
    count = 0
    for attribute in ATTRIBUTES:
        said = dict(re.findall(rf"Speaker (\w+) says: I {attribute.said} (\w+) now\.", conversation))
        noted = dict(re.findall(rf"\b(\w+) {attribute.noted} (\w+)\.", store))
        wrong = [who for who, value in said.items() if noted.get(who) != value]
        count += len(wrong) + 100 * any(attribute.asked.format(who) == query for who in wrong)
    return count


def _of_text(question: str, text: str) -> int:
    """Requirements of the instruction that a text does not meet."""
    if "tower" in question:
        floors = dict(re.findall(r"^#\*# Floor (\d+):(.*)$", text, re.MULTILINE))
        return sum(f"a {feature}." not in floors.get(str(floor), "") for feature, floor in required(question))
    if "network" in question:
        ends = re.search(r"from (\w+) to (\w+)\.", question)
        hops = _HOP.findall(text)
        if ends is None or not hops:
            return 100
        gaps = sum(before[1] != after[0] for before, after in zip(hops, hops[1:], strict=False))
        unknown = sum(hop not in set(_HOP.findall(question)) for hop in hops)
        return ((hops[0][0], hops[-1][1]) != ends.groups()) + gaps + unknown
    return sum(point not in text for point in re.findall(r"^- (The .*\.)$", question, re.MULTILINE))
