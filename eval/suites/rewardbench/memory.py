"""MemoryRewardBench (arXiv 2601.11969): 2,400 pairs of memory trajectories in ten settings and five lengths."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from elastic_jax.errors import DataError
from eval.harness.provenance import text_digest
from eval.suites.records import JsonRecord, read_records
from eval.suites.rewardbench.items import JudgeItem, distinct

REASONING = "Long-context_Reasoning"
DIALOGUE = "Multi-turn_Dialogue_Understanding"
GENERATION = "Long-form_Generation"
GROUPS = (REASONING, DIALOGUE, GENERATION)
LENGTHS = ("8k", "16k", "32k", "64k", "128k")


@dataclass(frozen=True)
class Setting:
    """One of the ten ways in which a pair was made."""

    name: str
    group: str
    pattern: Literal["sequential", "mixed", "parallel"]
    criterion: Literal["process", "outcome", "constraint"]
    """How the two differ: in how the memory was kept, in what it led to, or in the requirements met."""


SETTINGS = {
    setting.name: setting
    for setting in (
        Setting("Sequential-Noise", REASONING, "sequential", "process"),
        Setting("Sequential-Drop", REASONING, "sequential", "outcome"),
        Setting("Mixed-Noise", REASONING, "mixed", "process"),
        Setting("Mixed-Drop", REASONING, "mixed", "outcome"),
        Setting("Mem0-Out", DIALOGUE, "sequential", "outcome"),
        Setting("Mem0-Mem", DIALOGUE, "sequential", "process"),
        Setting("A-Mem-Out", DIALOGUE, "sequential", "outcome"),
        Setting("A-Mem-Mem", DIALOGUE, "sequential", "process"),
        Setting("Sequential", GENERATION, "sequential", "constraint"),
        Setting("Parallel", GENERATION, "parallel", "constraint"),
    )
}

_PATTERN = {"Sequential": r"^s-|sequent|sequant", "Mixed": r"^p-|parallel|mixed"}
_DAMAGE = {"Noise": r"noise|self[-_]?correct", "Drop": r"drop|wrong[-_]?answer|mask"}
_SYSTEM = {"Mem0": r"mem0", "A-Mem": r"(?<![a-z])a[-_]?mem(?!ory)"}
_KIND = {"Out": r"[-_](out|easy)$", "Mem": r"[-_](mem|hard)$"}
_FORM = {"Sequential": r"sequent|sequant|longproc", "Parallel": r"parallel"}
_RULES = {REASONING: (_PATTERN, _DAMAGE), DIALOGUE: (_SYSTEM, _KIND), GENERATION: (_FORM,)}
_SOURCES = {
    "babilong": r"qa\d|babilong",
    "longmit": r"longmit",
    "locomo": r"locomo",
    "memoryagentbench": r"memory[-_]?agent[-_]?bench|conflict",
    "longeval": r"longeval",
    "longgenbench": r"longgenbench",
    "longproc": r"longproc",
}


def group_of(stem: str) -> str | None:
    """The group that a file name names, or None."""
    words = {REASONING: "reason", DIALOGUE: "dialog", GENERATION: "form"}
    return next((group for group, word in words.items() if word in stem.lower()), None)


def setting_of(group: str, task: str, subtask: str) -> Setting:
    """The setting that a record names in one of several spellings; `task` is read before `subtask`.

    Raises:
        DataError: neither field says which setting it is.
    """
    parts = [_first_match(rules, (task, subtask)) for rules in _RULES[group]]
    if None in parts:
        raise DataError(
            f"task {task!r} with subtask {subtask!r} is none of the settings of {group}: "
            + ", ".join(name for name, setting in SETTINGS.items() if setting.group == group)
        )
    return SETTINGS["-".join(str(part) for part in parts)]


def read_folder(folder: Path) -> dict[str, list[JudgeItem]]:
    """The records of every group file (`Long-context_Reasoning.jsonl`, ...) in a folder, by group.

    Reads both releases: the six fields of the hub's, and the longer records of the repository's sample.

    Raises:
        DataError: no file of any group, two files of one group, or a malformed record (file and line are named).
    """
    found: dict[str, Path] = {}
    for file in sorted(folder.glob("*.jsonl")):
        group = group_of(file.stem)
        if group in found:
            raise DataError(f"{found[group]} and {file} both look like {group}; keep one file for each group.")
        if group is not None:
            found[group] = file
    if not found:
        raise DataError(
            f"{folder} has no MemoryRewardBench file; want one or more of {', '.join(GROUPS)}, each .jsonl."
        )
    return {group: items_of(group, read_records(found[group])) for group in GROUPS if group in found}


def items_of(group: str, records: Sequence[JsonRecord]) -> list[JudgeItem]:
    """The records of one group's file, checked."""
    return distinct([_item(group, record) for record in records])


def _item(group: str, record: JsonRecord) -> JudgeItem:
    question, chosen, rejected = (record.text(name) for name in ("question", "chosen", "rejected"))
    task, subtask = record.text("task"), record.text("subtask")
    try:
        setting = setting_of(group, task, subtask)
    except DataError as error:
        raise record.error(str(error)) from None
    axes = {
        "group": group,
        "setting": setting.name,
        "pattern": setting.pattern,
        "criterion": setting.criterion,
        "source": _first_match(_SOURCES, (subtask, str(record.fields.get("data_source", "")))) or subtask,
        "length": record.choice("ctx_length", LENGTHS),
        "task": task,
        "subtask": subtask,
    }
    return JudgeItem(
        uid=f"{setting.name}/{text_digest(question, chosen, rejected)}",
        task=setting.name,
        question=question,
        answers=(chosen, rejected),
        axes=axes,
        conversation=({"role": "user", "content": question},),
    )


def _first_match(rules: Mapping[str, str], texts: Sequence[str]) -> str | None:
    """The name whose pattern occurs in the first text in which any does."""
    for text in texts:
        for name, pattern in rules.items():
            if re.search(pattern, text.lower()):
                return name
    return None


def official_table(results: Sequence[tuple[Mapping[str, str], float]]) -> dict[str, dict[str, float]]:
    """The official columns, from the axes and the score of every record: settings, groups, then `Overall`.

    Each column has the means 8k ... 128k and AVG as fractions of five places; an empty cell is -1. Every record
    counts the same in every mean.
    """
    columns = {name: [r for r in results if r[0]["setting"] == name] for name in SETTINGS}
    columns |= {group: [r for r in results if r[0]["group"] == group] for group in GROUPS}
    columns["Overall"] = list(results)
    return {
        name: {length: _mean([score for axes, score in rows if axes["length"] == length]) for length in LENGTHS}
        | {"AVG": _mean([score for _, score in rows])}
        for name, rows in columns.items()
    }


def _mean(scores: Sequence[float]) -> float:
    return round(sum(scores) / len(scores), 5) if scores else -1.0
