"""A made-up Long-RewardBench: both formats at any length, seeded, with labels that are right by construction.

A text states who keeps what; the better of two answers repeats more of it correctly. Tasks differ in name only, so that
every row of the tables has records. Scores do not compare with published figures.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

from eval.suites.records import JsonRecord
from eval.suites.rewardbench.items import JudgeItem, length_bucket
from eval.suites.rewardbench.long import LENGTHS, PAIR, RANKING, TASKS, items_of
from eval.suites.rewardbench.twins.text import fit_size, with_filler
from eval.suites.words import FIRST_NAMES, THINGS

_FACTS = 10
_RIGHT = (10, 7, 4, 1)
_PAIRS_ONLY = ("Safety", "Math")


def make_items(
    repeats: int, lengths: Sequence[int], seed: int, count_tokens: Callable[[str], int]
) -> dict[str, list[JudgeItem]]:
    """By task: `repeats` pairs of each kind and, but for Safety and Math, rankings of 2, 3 and 4, at every length.

    Args:
        lengths: tokens of the question with its text; a record has up to a tenth fewer.
        count_tokens: tokens of a text in the judge's tokenizer.

    Raises:
        DataError: a length too short.
    """
    items = {}
    for task in TASKS:
        kinds = [(PAIR, "same"), (PAIR, "cross")]
        if task not in _PAIRS_ONLY:
            kinds += [(RANKING, size) for size in "234"]
        items[task] = items_of(
            task,
            [
                JsonRecord(f"{task} {name}", _fields(kind, subtype, length, f"{seed}/{task}/{name}", count_tokens))
                for length in lengths
                for repeat in range(repeats)
                for kind, subtype in kinds
                if (name := f"{kind} {subtype} {length} {repeat}")
            ],
        )
    return items


def _fields(tasktype: str, subtype: str, length: int, name: str, count_tokens: Callable[[str], int]) -> dict:
    def build(size: int) -> dict:
        rng = random.Random(name)
        facts: list[tuple[str, str]] = list(
            zip(rng.sample(FIRST_NAMES, _FACTS), rng.sample(THINGS, _FACTS), strict=True)
        )
        text = " ".join(with_filler(rng, [_sentence(fact) for fact in facts], size))
        answers = [_answer_text(rng, facts, right) for right in _RIGHT[: int(subtype) if tasktype == RANKING else 2]]
        question = "Who keeps what, by this text? Write one sentence for each person."
        return {"text": f"{text}\n\n{question}", "answers": answers}

    made = fit_size(build, lambda made: count_tokens(made["text"]), length)
    ranking = tasktype == RANKING
    return {
        "prompt_template": [{"role": "user", "content": made["text"]}],
        "source": "twin",
        "tasktype": tasktype,
        "subtype": subtype,
        "chosen": None if ranking else made["answers"][0],
        "rejected": None if ranking else made["answers"][1],
        "candidates": made["answers"] if ranking else None,
        "candidates_score": [right / _FACTS for right in _RIGHT[: len(made["answers"])]] if ranking else None,
        "ctx_length_for_length": length_bucket(count_tokens(made["text"]), LENGTHS),
    }


def _sentence(fact: tuple[str, str]) -> str:
    return f"{fact[0]} keeps the {fact[1]}."


def _answer_text(rng: random.Random, facts: list[tuple[str, str]], right: int) -> str:
    """A sentence for each person: `right` of them, drawn at random, keep their own thing in it, the others another."""
    people = rng.sample(facts, len(facts))
    others = [thing for thing in THINGS if thing not in {fact[1] for fact in facts}]
    wrong = [(who, other) for (who, _), other in zip(people[right:], rng.sample(others, _FACTS - right), strict=True)]
    return " ".join(_sentence(fact) for fact in rng.sample([*people[:right], *wrong], len(people)))
