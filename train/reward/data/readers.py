"""Preference and judge records out of files, in the forms that public data sets have.

| form | fields |
|---|---|
| conversational | `prompt`: messages; `chosen`, `rejected`: a text, or one message of the assistant |
| plain | `prompt`: a text; `chosen`, `rejected`: texts |
| implicit prompt | `chosen`, `rejected`: whole conversations that begin alike and differ in the last answer |
| LongRM | `chat_template`: messages; `chosen`: a text, `rejects`: texts |

Where a text is rejected, a list of texts may stand: several rejected answers. Further fields: `margin` (a number),
`context` (the part of a message that may be shortened), `kinds` (what is wrong with each rejected answer).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from elastic_jax.errors import DataError, shown
from train.data.tables import read_rows
from train.reward.data.records import ROLES, JudgeRecord, Message, PreferenceRecord, Tally

NO_REJECTED = "no rejected answer"
EQUAL = "chosen and rejected are equal"
EMPTY_CHOSEN = "the chosen answer is empty"

_MESSAGES = "want a list of messages, each with a role (system, user, assistant) and a text as content"


def read_preferences(path: Path) -> tuple[list[PreferenceRecord], Tally]:
    """The comparisons of a file or folder (see `read_rows`), and what was left out.

    Left out and counted: records without a rejected answer, with an empty chosen one, and rejected answers equal to the
    chosen one.

    Raises:
        DataError: a malformed record (file and line are named), or none that can be used.
    """
    tally, records = Tally(), []
    for where, row in read_rows(path):
        record = parse_preference(row, where, tally)
        if record is not None:
            records.append(record)
    return tally.finish(records, f"{path}: no record that can be used.")


def read_judge_records(path: Path) -> tuple[list[JudgeRecord], Tally]:
    """The judge's prompts and judgements of a file or folder: `prompt` (or `chat_template`) and `answer` (or `golden`).

    Left out and counted: records with an empty answer.

    Raises:
        DataError: a malformed record (file and line are named), or none that can be used.
    """
    tally, records = Tally(), []
    for where, row in read_rows(path):
        fields = _object(row, where)
        answer = fields.get("answer", fields.get("golden"))
        if not isinstance(answer, str):
            raise DataError(f"{where}: `answer` must be a text; got {_found(answer)}.")
        prompt = _prompt(fields, where)
        if answer.strip():
            records.append(JudgeRecord(prompt, answer, _context(fields, prompt, where), where))
        else:
            tally.skip("the answer is empty", where)
    return tally.finish(records, f"{path}: no record that can be used.")


def hold_out[R: (PreferenceRecord, JudgeRecord)](
    records: Sequence[R], count: int, seed: int
) -> tuple[list[R], list[R]]:
    """Records to train on, and about `count` to evaluate on (more where one prompt has several records).

    Records of one prompt stay on one side. The choice depends on the seed and the prompts.

    Raises:
        DataError: one of the two sides would be empty.
    """
    prompts = list(dict.fromkeys(record.prompt for record in records))
    held: set[tuple[Message, ...]] = set()
    by_prompt: dict[tuple[Message, ...], int] = {}
    for record in records:
        by_prompt[record.prompt] = by_prompt.get(record.prompt, 0) + 1
    total = 0
    for place in np.random.default_rng(seed).permutation(len(prompts)):
        if total >= count:
            break
        held.add(prompts[place])
        total += by_prompt[prompts[place]]
    if not 0 < total < len(records):
        raise DataError(
            f"{count} of {len(records)} records ({len(prompts)} prompts) held out for evaluation leaves "
            f"{'nothing to evaluate on' if total == 0 else 'nothing to train on'}. Want a number between the two, or a "
            "file of its own for evaluation."
        )
    train = [record for record in records if record.prompt not in held]
    return train, [record for record in records if record.prompt in held]


def parse_preference(row: object, where: str, tally: Tally) -> PreferenceRecord | None:
    """One checked record; None where it is left out, which is counted.

    Raises:
        DataError: malformed; the complaint starts with `where`.
    """
    fields = _object(row, where)
    listed = fields.get("rejected", fields.get("rejects"))
    if "prompt" in fields or "chat_template" in fields:
        prompt = _prompt(fields, where)
        chosen = _answer(fields.get("chosen"), prompt, where, "chosen")
        rejected = [_answer(entry, prompt, where, "rejected") for entry in _entries(listed)]
    else:
        turns = _messages(fields.get("chosen"), where, "chosen")
        if turns[-1].role != "assistant" or len(turns) < 2:
            raise DataError(f"{where}: `chosen` without a `prompt` must be a conversation that ends with an answer.")
        prompt, chosen = turns[:-1], turns[-1].content
        _check_prompt(prompt, where)
        rejected = [_continuation(entry, prompt, where) for entry in _entries(listed)]
    if not chosen.strip():
        tally.skip(EMPTY_CHOSEN, where)
        return None
    if not rejected:
        tally.skip(NO_REJECTED, where)
        return None
    kinds = _kinds(fields, len(rejected), where)
    different = [place for place, answer in enumerate(rejected) if answer.strip() != chosen.strip()]
    for _ in range(len(rejected) - len(different)):
        tally.skip(EQUAL, where)
    if not different:
        return None
    return PreferenceRecord(
        prompt,
        chosen,
        tuple(rejected[place] for place in different),
        _margin(fields, where),
        _context(fields, prompt, where),
        tuple(kinds[place] for place in different) if kinds else (),
        where,
    )


def _object(row: object, where: str) -> dict[str, Any]:
    if not isinstance(row, dict):
        raise DataError(f"{where}: a record is an object with named fields; got {type(row).__name__}.")
    return row


def _prompt(fields: dict[str, Any], where: str) -> tuple[Message, ...]:
    name = "prompt" if "prompt" in fields else "chat_template"
    value = fields.get(name)
    if isinstance(value, str) and value.strip():
        return (Message("user", value),)
    prompt = _messages(value, where, name)
    _check_prompt(prompt, where)
    return prompt


def _check_prompt(prompt: Sequence[Message], where: str) -> None:
    if prompt[-1].role != "user":
        raise DataError(f"{where}: the prompt must end with a message of the user; it ends with {prompt[-1].role!r}.")


def _messages(value: object, where: str, name: str) -> tuple[Message, ...]:
    if not isinstance(value, list | tuple) or not value:
        raise DataError(f"{where}: `{name}` is {_found(value)}; {_MESSAGES}.")
    for entry in value:
        if not isinstance(entry, dict) or entry.get("role") not in ROLES or not isinstance(entry.get("content"), str):
            raise DataError(f"{where}: `{name}` has an entry that is no message: {_found(entry)}; {_MESSAGES}.")
    return tuple(Message(entry["role"], entry["content"]) for entry in value)


def _answer(value: object, prompt: tuple[Message, ...], where: str, name: str) -> str:
    """The text of an answer: given as such, as a message, or at the end of the repeated conversation."""
    if isinstance(value, str):
        return value
    if not isinstance(value, list | tuple):
        raise DataError(f"{where}: `{name}` is {_found(value)}; want the text of an answer, or its messages.")
    turns = _messages(value, where, name)
    if len(turns) > 1 and turns[: len(prompt)] == prompt:
        turns = turns[len(prompt) :]
    if len(turns) != 1 or turns[0].role != "assistant":
        roles = ", ".join(turn.role for turn in turns)
        raise DataError(
            f"{where}: `{name}` has messages of {roles}; want one of the assistant, alone or after those of the prompt."
        )
    return turns[0].content


def _continuation(value: object, prompt: tuple[Message, ...], where: str) -> str:
    turns = _messages(value, where, "rejected")
    if turns[:-1] != prompt or turns[-1].role != "assistant":
        raise DataError(
            f"{where}: `chosen` and `rejected` are conversations that differ before their last answer. Give `prompt` "
            "and the two answers instead."
        )
    return turns[-1].content


def _entries(value: object) -> Iterable[object]:
    """The rejected answers, of which there may be none, one or several; a list of messages is one answer."""
    if value is None:
        return []
    if isinstance(value, list | tuple) and not (value and isinstance(value[0], dict)):
        return [entry for entry in value if entry is not None]
    return [value]


def _margin(fields: dict[str, Any], where: str) -> float | None:
    value = fields.get("margin")
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise DataError(f"{where}: `margin` is {_found(value)}; want a finite number, or leave it out.")
    return float(value)


def _context(fields: dict[str, Any], prompt: Sequence[Message], where: str) -> str | None:
    value = fields.get("context")
    if value is None or "chat_template" in fields:  # released LongRM files: there it is what must not be cut
        return None
    if not isinstance(value, str):
        raise DataError(f"{where}: `context` is {_found(value)}; want a part of a message, or leave it out.")
    if value.strip() and any(value.strip() in message.content for message in prompt):
        return value
    raise DataError(f"{where}: `context` is no part of any message of the prompt. Correct it, or leave it out.")


def _kinds(fields: dict[str, Any], count: int, where: str) -> list[str]:
    value = fields.get("kinds")
    if value is None:
        return []
    if not isinstance(value, list) or len(value) != count or not all(isinstance(kind, str) for kind in value):
        raise DataError(f"{where}: `kinds` is {_found(value)}; want one text for each of {count} rejected answers.")
    return value


def _found(value: object) -> str:
    if value is None:
        return "missing"
    return shown(value)
