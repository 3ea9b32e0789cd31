"""Records of a journal: what a result is kept as, whether it still counts, and how a reply is scored again."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any

from elastic_jax.errors import DataError, shown
from elastic_jax.journal import Journal
from eval.harness.backends.base import Backend
from eval.harness.encoding import Encoder, make_prompt
from eval.harness.thinking import answer_of, thinks_to_the_end
from eval.samples import Arm, Prompt, Reply, Sample, Showing, Verdict
from eval.tasks import Group, Task

Record = dict[str, Any]
"""One journal value: task, uid, showing, arm, axes, notes, status, scores, main, parsed, references, text,
prompt_tokens, cut_tokens, new_tokens, finish, numbers; where samples are records of a file, content. Reports need
nothing else."""

_MOST_ANSWERS = 1000
_FIELDS: dict[str, type | tuple[type, ...]] = {
    **dict.fromkeys(("task", "uid", "arm", "status", "main", "text", "finish"), str),
    **dict.fromkeys(("showing", "axes", "notes", "scores", "numbers"), dict),
    **dict.fromkeys(("cut_tokens", "new_tokens"), int),
    "references": (list, tuple),
    "parsed": object,
    "prompt_tokens": (int, type(None)),
}


def check_record(where: str, record: Any, names: Collection[str] = tuple(_FIELDS)) -> Record:
    """The value of a journal as a record that has at least these fields.

    Raises:
        DataError: it is none, or a field is missing or damaged.
    """
    if not isinstance(record, dict):
        raise _damaged(where, shown(record))
    for name in names:
        if name not in record or not isinstance(record[name], _FIELDS[name]):
            raise _damaged(where, f"a record whose {name} is {shown(record.get(name))}")
    showing, order = record["showing"], record["showing"].get("order", ())
    answers = isinstance(order, list | tuple) and all(isinstance(x, int) and 0 <= x < _MOST_ANSWERS for x in order)
    if not answers or not isinstance(showing.get("label"), str):
        raise _damaged(where, f"a record whose showing is {shown(showing)}")
    figures = [*record["scores"].values(), *record.get("numbers", {}).values()]
    if not all(isinstance(value, int | float) for value in figures):
        raise _damaged(where, f"a record whose figures are {shown(figures)}")
    if record["main"] == "reward" and not (order and "reward" in record["scores"]):
        raise _damaged(where, "a record of a reward without the reward, or without its answer's place")
    if not all(isinstance(value, str | int) for value in record.get("axes", {}).values()):
        raise _damaged(where, f"a record whose axes are {shown(record['axes'])}")
    return record


def _damaged(where: str, what: str) -> DataError:
    return DataError(f"{where} holds {what}. Remove its line to have the work done again.")


def record_key(uid: str, showing: Showing, label: str) -> str:
    """The journal key of a sample, shown in one way, under the arm that `Backend.label` names."""
    return "|".join((uid, showing.label, label))


def valid_record(group: Group, index: int, showing: Showing, label: str, journal: Journal) -> Record | None:
    """The journal's record of a sample; None where it has none, or one of other content or another order."""
    key = record_key(group.uids[index], showing, label)
    if key not in journal:
        return None
    record = journal[key]
    if group.contents is None:
        return record
    same = record.get("content") == group.contents[index] and tuple(record["showing"]["order"]) == showing.order
    return record if same else None


def refresh(
    backend: Backend,
    encoder: Encoder | None,
    groups: Sequence[Group],
    arms: Sequence[Arm],
    journal: Journal,
    limit: int | None = None,
) -> None:
    """Scores replies in the journal anew where that takes no model.

    That is where the references of a record changed, and in journals of earlier versions, which hold no digest of what
    was shown (there the tokens of the prompt must be as many as before), or scored the thinking of a reply with its
    answer.
    """
    limit = lowest(limit, backend.max_tokens)
    for group in groups:
        for arm in arms:
            label = backend.label(arm)
            updated = {}
            for index, uid in enumerate(group.uids):
                for showing in group.showings(index):
                    key = record_key(uid, showing, label)
                    if key in journal:
                        record = _rescored(group, index, showing, journal[key], encoder, limit)
                        if record != journal[key]:
                            updated[key] = record
            if updated:
                journal.append(updated)


def _rescored(
    group: Group, index: int, showing: Showing, record: Record, encoder: Encoder | None, limit: int | None
) -> Record:
    """The record as the reply in it would be scored now; unchanged where the reply is one to another prompt."""
    task = group.task
    if group.contents is None:
        if task.kind != "generate" or answer_of(record["text"]) == record["text"]:
            return record
        # what was made of chance and texts is judged by its references alone, and building it again takes long
        sample = Sample(record["uid"], {}, tuple(record["references"]))
    else:
        sample, content = group.build(index), group.contents[index]
        if tuple(record["showing"]["order"]) != showing.order:
            return record
        if "content" not in record:
            made = make_prompt(task.template(sample, showing), encoder, task.policy, limit, sample, showing)
            tokens = None if made is None else len(made.prompt_ids)
            if (tokens, 0 if made is None else made.cut_tokens) != (record["prompt_tokens"], record["cut_tokens"]):
                return record
        elif record["content"] != content:
            return record
        elif tuple(record["references"]) == sample.references and record["axes"] == dict(sample.axes):
            return record
        record = record | {"axes": dict(sample.axes), "references": list(sample.references), "content": content}
    if record["status"] == "too_long":
        return record
    reply = Reply(record["text"], record["new_tokens"], record["finish"], record["numbers"], record.get("details", {}))
    verdict = verdict_of(task, sample, showing, reply)
    return record | {"status": verdict.status, "scores": dict(verdict.scores), "parsed": verdict.parsed}


def verdict_of(task: Task, sample: Sample, showing: Showing, reply: Reply) -> Verdict:
    verdict = task.metric(sample, showing, reply)
    unfinished = task.kind == "generate" and thinks_to_the_end(reply.text)
    return replace(verdict, status="unfinished") if unfinished else verdict


def lowest(*bounds: int | None) -> int | None:
    return min((bound for bound in bounds if bound is not None), default=None)


def new_record(
    task: Task, sample: Sample, showing: Showing, arm: Arm, verdict: Verdict, prompt: Prompt | None, reply: Reply
) -> Record:
    record = {
        "task": task.name,
        "uid": sample.uid,
        "showing": {"label": showing.label, "order": showing.order, "repeat": showing.repeat},
        "arm": arm.name,
        "axes": dict(sample.axes),
        "notes": dict(sample.notes),
        "status": verdict.status,
        "main": task.main_score,
        "scores": dict(verdict.scores),
        "parsed": verdict.parsed,
        "references": sample.references,
        "text": reply.text,
        "finish": reply.finish,
        "prompt_tokens": None if prompt is None else len(prompt.prompt_ids),
        "cut_tokens": 0 if prompt is None else prompt.cut_tokens,
        "new_tokens": reply.new_tokens,
        "numbers": dict(reply.numbers),
    }
    if reply.details:
        record["details"] = dict(reply.details)
    if sample.content is not None:
        record["content"] = sample.content
    return record
