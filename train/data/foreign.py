"""Question-answer files of other makers: fields `input`, `context` or `facts`, and `answers`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path, PurePath

from elastic_jax.errors import DataError, shown
from elastic_jax.text.split import split_of
from train.data.records import CODE, MULTIHOP_QA, SINGLE_QA, SUMMARIZATION, parse_record
from train.data.tables import read_rows


@dataclass(frozen=True)
class Evidence:
    """A question whose answer lies in its context."""

    context: str
    question: str
    answer: str
    task: int
    facts: tuple[str, ...] = ()
    """Short statements in order instead of a long context; the builder spreads them over real text."""
    answer_start: int | None = None
    """Character of `context` where the supporting passage lies, so that a cut keeps it; None keeps the beginning."""


def read_evidence(path: Path) -> list[Evidence]:
    """Reads a file of records in our own format or with the fields `input`, `context` or `facts`, `answers`.

    The task follows from `metadata.task` if there is one, else from what the record shows: a folder named `summar...`
    makes it Summarization, an empty `input` Code, several supporting places MultiHop QA, all else Single QA. Objects
    without `input` and `answers` are left out, and so is the evaluation side of `elastic_jax.text.split` (by `file`,
    else `id`).
    """
    return [evidence for where, raw in read_rows(path) for evidence in _parse(raw, where, path.parent.name)]


def _parse(raw: object, where: str, folder: str) -> list[Evidence]:
    if not isinstance(raw, dict):
        raise DataError(f"{where}: a record is a JSON object; got {type(raw).__name__}.")
    if "metadata" in raw:
        record = parse_record(raw, where)
        return [Evidence(record.context, record.question, record.answer, record.task)]
    if "input" not in raw or "answers" not in raw:
        return []
    if split_of(PurePath(str(raw.get("file") or raw.get("id") or raw["input"])).name) != "train":
        return []
    question, answers = raw["input"], raw["answers"]
    context, facts = raw.get("context", ""), raw.get("facts", [])
    if not isinstance(question, str) or not isinstance(context, str):
        raise DataError(f"{where}: `input` and `context` must be strings.")
    if not isinstance(answers, list) or not answers or not all(isinstance(it, str) and it for it in answers):
        raise DataError(f"{where}: `answers` must be a non-empty list of non-empty strings; got {shown(answers)}.")
    if not isinstance(facts, list) or not all(isinstance(fact, str) for fact in facts) or not (context or facts):
        raise DataError(f"{where}: a `context` string or a `facts` list of strings is wanted.")
    answer = answers[0]
    start = raw.get("answer_char")
    if start is None:
        start = context.find(answer)
    if not isinstance(start, int):
        raise DataError(f"{where}: `answer_char` must be an integer; got {start!r}.")
    task = _task(raw, folder)
    return [Evidence(context, question, answer, task, tuple(facts), start if start >= 0 else None)]


def _task(raw: dict, folder: str) -> int:
    if folder.startswith("summar"):
        return SUMMARIZATION
    if not raw["input"].strip():
        return CODE
    places = raw.get("support", raw.get("gold_index"))
    return MULTIHOP_QA if isinstance(places, list) and len(places) > 1 else SINGLE_QA
