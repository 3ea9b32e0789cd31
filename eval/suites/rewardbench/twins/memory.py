"""A made-up MemoryRewardBench: all ten settings at any length, seeded, with labels that are right by construction.

Nothing is downloaded. Scores on it say whether a judge and the evaluation work, and compare judges with each other;
they do not compare with published figures.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

from eval.suites.records import JsonRecord
from eval.suites.rewardbench.items import JudgeItem, length_bucket
from eval.suites.rewardbench.memory import (
    DIALOGUE,
    GENERATION,
    GROUPS,
    LENGTHS,
    REASONING,
    SETTINGS,
    Setting,
    items_of,
)
from eval.suites.rewardbench.plans import memory_prompt
from eval.suites.rewardbench.twins import dialogue, generation, reasoning
from eval.suites.rewardbench.twins.text import fit_size


def make_items(
    pairs: int, lengths: Sequence[int], seed: int, count_tokens: Callable[[str], int]
) -> dict[str, list[JudgeItem]]:
    """`pairs` pairs of every setting at every length, by group.

    Args:
        lengths: tokens of the judge's whole prompt; a record has up to a tenth fewer.
        count_tokens: tokens of a text in the judge's tokenizer.

    Raises:
        DataError: a length too short for a setting.
    """
    records: dict[str, list[JsonRecord]] = {group: [] for group in GROUPS}
    for setting in SETTINGS.values():
        for length in lengths:
            for index in range(pairs):
                fields = make_record(setting, length, f"{seed}/{setting.name}/{length}/{index}", count_tokens)
                records[setting.group].append(JsonRecord(f"{setting.name} {length} {index}", fields))
    return {group: items_of(group, made) for group, made in records.items()}


def make_record(setting: Setting, length: int, name: str, count_tokens: Callable[[str], int]) -> dict[str, str]:
    """The six fields of one record; the same name gives the same record."""

    def measure(pair: dict[str, str]) -> int:
        shown = memory_prompt(
            pair["question"], (pair["chosen"], pair["rejected"]), generation=setting.group == GENERATION
        )
        return count_tokens(shown.system + shown.before + shown.context + shown.after)

    pair = fit_size(lambda size: _pair(setting, random.Random(name), size), measure, length)
    return pair | {"task": setting.name, "ctx_length": length_bucket(measure(pair), LENGTHS)}


def _pair(setting: Setting, rng: random.Random, size: int) -> dict[str, str]:
    first, _, second = setting.name.rpartition("-")
    if setting.group == REASONING:
        return reasoning.make_pair(rng, mixed=first == "Mixed", drop=second == "Drop", size=size)
    if setting.group == DIALOGUE:
        return dialogue.make_pair(rng, tags=first == "A-Mem", outcome=second == "Out", size=size)
    return generation.make_pair(rng, parallel=setting.name == "Parallel", size=size)
