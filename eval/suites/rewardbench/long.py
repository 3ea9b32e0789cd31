"""Long-RewardBench (arXiv 2510.06915): 1,900 long questions with two answers to compare or two to four to rank."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from elastic_jax.errors import DataError
from eval.harness.provenance import text_digest
from eval.suites.records import JsonRecord, read_records
from eval.suites.rewardbench.items import JudgeItem, distinct

TASKS = ("LongQA", "Summ", "Safety", "ICL", "Cite", "Code", "Math")
LENGTHS = ("4k", "8k", "16k", "32k", "64k", "128k")
ROLES = ("system", "user", "assistant")
PAIR, RANKING = "PairWise", "BestOfN"


def read_folder(folder: Path) -> dict[str, list[JudgeItem]]:
    """The records of every task file (`LongQA.jsonl`, ...) in a folder, in the official order of the tasks.

    Raises:
        DataError: no task file at all, or a malformed record (file and line are named).
    """
    files = {task: folder / f"{task}.jsonl" for task in TASKS if (folder / f"{task}.jsonl").is_file()}
    if not files:
        raise DataError(f"{folder} has no Long-RewardBench file; want one or more of {', '.join(TASKS)}, each .jsonl.")
    return {task: items_of(task, read_records(file)) for task, file in files.items()}


def items_of(task: str, records: Sequence[JsonRecord]) -> list[JudgeItem]:
    """The records of one task file, checked."""
    return distinct([_item(task, record) for record in records])


def _item(task: str, record: JsonRecord) -> JudgeItem:
    tasktype = record.fields.get("tasktype")
    if tasktype is not None:
        record.choice("tasktype", (PAIR, RANKING))
    conversation = _conversation(record)
    subtype = str(record.fields.get("subtype"))
    if tasktype == RANKING:
        answers = record.texts("candidates", at_least=2)
        if subtype != str(len(answers)) or len(answers) > 4:
            raise record.error(f"{len(answers)} candidates with subtype {subtype!r}; want 2 to 4, and the same number")
        _check_best_first(record, len(answers))
    else:
        answers = [record.text(name, empty=True) for name in ("chosen", "rejected")]
    axes = {
        "task": task,
        "tasktype": tasktype or "",
        "subtype": subtype,
        "source": str(record.fields.get("source") or ""),
        "length": record.choice("ctx_length_for_length", LENGTHS),
    }
    return JudgeItem(
        uid=f"{task}/{text_digest(json.dumps(conversation), *answers)}",
        task=f"{task} ranking" if tasktype == RANKING else task,
        question="\n\n".join(message["content"] for message in conversation),
        answers=tuple(answers),
        axes=axes,
        conversation=conversation,
        ranking=tasktype == RANKING,
    )


def _conversation(record: JsonRecord) -> tuple[Mapping[str, str], ...]:
    messages: Any = record.fields.get("prompt_template")
    wanted = "want a list of messages, each with a role (system, user, assistant) and a text as content"
    if not isinstance(messages, list) or not messages:
        raise record.error(f"field 'prompt_template' is missing or empty; {wanted}")
    for message in messages:
        if (
            not isinstance(message, dict)
            or message.get("role") not in ROLES
            or not isinstance(message.get("content"), str)
        ):
            raise record.error(f"field 'prompt_template' has an entry that is no message; {wanted}")
    if all(message["role"] != "user" for message in messages):
        raise record.error("field 'prompt_template' has no message of the user; want one or more")
    return tuple({"role": message["role"], "content": message["content"]} for message in messages)


def _check_best_first(record: JsonRecord, count: int) -> None:
    scores = record.fields.get("candidates_score")
    if not isinstance(scores, list) or len(scores) != count or not all(isinstance(s, int | float) for s in scores):
        raise record.error(f"field 'candidates_score' is missing or not {count} numbers; want one for each candidate")
    if any(after > before for before, after in zip(scores, scores[1:], strict=False)):
        raise record.error(f"candidates_score {scores} rises; candidates must be stored best first")


def official_table(results: Sequence[tuple[Mapping[str, str], float]]) -> dict[str, float]:
    """The 21 rows of the official `results.csv`, from the axes and the rank match of every record.

    Tasks and lengths count pairs only; the last row is the mean over all records. Empty rows are 0, values are rounded
    to five places, and the names (the comma after `Rank Avg` too) are those of the official file.
    """
    pairs = [(axes, score) for axes, score in results if axes["tasktype"] == PAIR]
    rankings = [(axes, score) for axes, score in results if axes["tasktype"] == RANKING]
    rows = {task: [score for axes, score in pairs if axes["task"] == task] for task in TASKS}
    rows["Same."] = [score for axes, score in pairs if axes["subtype"] == "same"]
    rows["Diff."] = [score for axes, score in pairs if axes["subtype"] != "same"]
    rows["PairWise Avg."] = [score for _, score in pairs]
    for size in "234":
        rows[f"Rank{size}"] = [score for axes, score in rankings if axes["subtype"] == size]
    rows["Rank Avg,"] = [score for _, score in rankings]
    for length in LENGTHS:
        rows[length] = [score for axes, score in pairs if axes["length"] == length]
    rows["AVG."] = [score for _, score in results]
    return {name: round(sum(scores) / len(scores), 5) if scores else 0.0 for name, scores in rows.items()}
