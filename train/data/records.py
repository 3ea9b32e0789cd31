"""The training record: one context, one question, one answer and the task label that the losses balance by.

On disk a record is one JSON object per line (the format of the paper's released data):
`{"context": str, "question": str, "answer": str, "metadata": {"task": str, "is_prefix": bool}}`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from difflib import get_close_matches

from elastic_jax.errors import DataError, ShapeError

TASKS = ("Single QA", "MultiHop QA", "Summarization", "Code", "In-Context Learning")
"""Task labels; a label's index is its task id."""

SINGLE_QA, MULTIHOP_QA, SUMMARIZATION, CODE, ICL = range(5)


@dataclass(frozen=True)
class Record:
    """One training sample before tokenisation."""

    context: str
    question: str
    answer: str
    task: int
    """Index into `TASKS`."""
    is_prefix: bool = True
    """Whether the question stands before the context."""
    where: str = field(default="", compare=False)
    """File and line, where it was read from one."""


@contextmanager
def errors_name(where: str) -> Iterator[None]:
    """Within it, an error about a record begins with its place."""
    try:
        yield
    except (DataError, ShapeError) as error:
        raise DataError(f"{where}: {error}") from error


def parse_record(raw: object, where: str) -> Record:
    """Checks one decoded JSON value; raises `DataError` that starts with `where` (file and line)."""
    if not isinstance(raw, dict):
        raise DataError(f"{where}: a record is a JSON object; got {type(raw).__name__}.")
    for name in ("context", "question", "answer"):
        if not isinstance(raw.get(name), str):
            got = type(raw[name]).__name__ if name in raw else "nothing"
            raise DataError(f"{where}: `{name}` must be a string; got {got}.")
    if not raw["context"].strip() or not raw["answer"]:
        raise DataError(f"{where}: `context` and `answer` must not be empty. Remove the record or fill it in.")
    metadata = raw.get("metadata")
    if not isinstance(metadata, dict):
        raise DataError(f"{where}: `metadata` must be an object with a `task`; got {type(metadata).__name__}.")
    is_prefix = metadata.get("is_prefix", True)
    if not isinstance(is_prefix, bool):
        raise DataError(f"{where}: `metadata.is_prefix` must be true or false; got {is_prefix!r}.")
    task = task_id(metadata.get("task"), where)
    return Record(raw["context"], raw["question"], raw["answer"], task, is_prefix, where)


def task_id(label: object, where: str) -> int:
    """Index of a task label; an unknown one is a `DataError` that names the nearest."""
    if label in TASKS:
        return TASKS.index(label)
    near = get_close_matches(str(label), TASKS, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    raise DataError(f"{where}: unknown task {label!r}; want one of {', '.join(map(repr, TASKS))}.{hint}")
