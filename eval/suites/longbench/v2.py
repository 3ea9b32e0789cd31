"""LongBench v2 (arXiv 2412.15204): four-way questions over long texts, answered in a sentence or by forced choice."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from eval.harness.thinking import answer_of
from eval.samples import Message, Rendered, Reply, Sample, Segment, Showing, Verdict
from eval.suites.metrics import chosen_letter
from eval.suites.records import JsonRecord, read_records
from eval.tasks import Group, Task, loaded_group

LETTERS = "ABCD"
_NEW_TOKENS = 128


def longbench_v2_group(source: str | Path, *, forced: bool, count: int | None, tokens: int) -> Group:
    """The questions, from `data.json` below a folder or on the hub. Axes: difficulty, size (the file's `length`).

    Args:
        forced: compare the likelihoods of the four letters instead of reading a generated answer.
        count: at most this many, the first ones.
        tokens: about how long prompts are: the limit that they are cut to.

    Raises:
        DataError: a file that is missing or a record that cannot be used, by file and line.
    """
    records = read_records(source, "data.json")
    samples = [_sample(record, number, forced) for number, record in enumerate(records[: count or None])]
    return loaded_group(FORCED if forced else WRITTEN, samples, tokens=tokens)


def _sample(record: JsonRecord, number: int, forced: bool) -> Sample:
    names = ("context", "question", *(f"choice_{letter}" for letter in LETTERS))
    fields: dict[str, Any] = {name: record.text(name) for name in names}
    answer = record.text("answer")
    if answer not in tuple(LETTERS):
        raise record.error(f"answer is {answer!r}; want A, B, C or D")
    axes: dict[str, str | int] = {}
    for axis, name in (("difficulty", "difficulty"), ("size", "length")):
        axes[axis] = record.text(name, empty=True) if name in record.fields else ""
    uid = f"longbench_v2/{record.fields.get('_id') or number}"
    return Sample(uid, fields, (answer,), axes, 0 if forced else _NEW_TOKENS)


def _question(sample: Sample, ask: str) -> Message:
    fields = sample.fields
    choices = "\n".join(f"({letter}) {fields[f'choice_{letter}']}" for letter in LETTERS)
    after = f"\n</text>\n\nQuestion: {fields['question']}\nChoices:\n{choices}\n\n{ask}"
    before = Segment("Read the text below and answer the question about it.\n\n<text>\n")
    return Message("user", (before, Segment(fields["context"], cuttable=True), Segment(after)))


def _written(sample: Sample, _: Showing) -> Rendered:
    ask = 'Answer in this form: "The correct answer is (the letter of your choice)".'
    return Rendered((_question(sample, ask),))


def _forced(sample: Sample, _: Showing) -> Rendered:
    message = _question(sample, "Answer with the letter of the correct choice.")
    return Rendered((message,), "The correct answer is (", tuple(LETTERS))


def _judge_written(sample: Sample, _: Showing, reply: Reply) -> Verdict:
    letter = chosen_letter(reply.text)
    status = "ok" if letter else "unparsed" if answer_of(reply.text).strip() else "empty"
    return Verdict({"correct": float(letter == sample.references[0])}, status, letter)


def _judge_forced(sample: Sample, _: Showing, reply: Reply) -> Verdict:
    likely = [reply.numbers[f"option_{place}"] for place in range(len(LETTERS))]
    letter = LETTERS[max(range(len(LETTERS)), key=likely.__getitem__)]
    return Verdict({"correct": float(letter == sample.references[0])}, parsed=letter)


WRITTEN = Task("longbench_v2", "generate", _written, _judge_written, "correct", policy="middle")
FORCED = Task("longbench_v2, forced choice", "choose", _forced, _judge_forced, "correct", policy="middle")
