"""Questions over documents (RULER `qa_1`, `qa_2`), from files in the format of SQuAD or HotpotQA."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from elastic_jax.errors import DataError
from elastic_jax.files import parse_json
from eval.suites.ruler.draft import Draft, Needle, joined_with_starts

_INSTRUCTION = "Answer the question from the documents alone. Give the answer and nothing else."


@dataclass(frozen=True)
class Question:
    """A question, every accepted answer, the documents that answer it, and distractors on the same subject."""

    text: str
    answers: tuple[str, ...]
    gold: tuple[str, ...]
    near: tuple[str, ...]


@dataclass(frozen=True)
class QuestionFile:
    """All questions of a file in its order, and all its documents."""

    questions: Sequence[Question]
    documents: Sequence[str]


def read_questions(path: str | Path) -> QuestionFile:
    """Reads SQuAD (`{"data": [{"paragraphs": ...}]}`; unanswerable questions are left out) or HotpotQA (a list).

    Raises:
        DataError: not JSON, a missing field or no answerable question, by file and place.
    """
    path = Path(path)
    try:
        content = parse_json(path.read_bytes())
    except (OSError, ValueError) as error:
        raise DataError(f"question file {path} cannot be read as JSON: {error}") from error
    try:
        if isinstance(content, Mapping):
            questions = list(_squad(content, str(path)))
        else:
            questions = list(_hotpot(content, str(path)))
    except (TypeError, ValueError, AttributeError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"question file {path} is in neither the SQuAD nor the HotpotQA format: {error}") from error
    if not questions:
        raise DataError(f"question file {path} has no question with an answer.")
    documents = dict.fromkeys(text for question in questions for text in (*question.gold, *question.near))
    return QuestionFile(questions, list(documents))


def _squad(content: Mapping[str, Any], path: str) -> Iterator[Question]:
    for a, article in enumerate(_field(content, "data", f"{path}")):
        where = f"{path}, data[{a}]"
        paragraphs = _field(article, "paragraphs", where)
        contexts = [_text(p, "context", f"{where}.paragraphs[{i}]") for i, p in enumerate(paragraphs)]
        for i, paragraph in enumerate(paragraphs):
            inside = f"{where}.paragraphs[{i}]"
            for j, question in enumerate(_field(paragraph, "qas", inside)):
                place = f"{inside}.qas[{j}]"
                if question.get("is_impossible"):
                    continue
                answers = [_text(answer, "text", f"{place}.answers") for answer in _field(question, "answers", place)]
                if not answers:
                    raise DataError(f"{place} has an empty list of answers; want one or more, or is_impossible.")
                near = tuple(text for text in contexts if text != contexts[i])
                yield Question(_text(question, "question", place), tuple(dict.fromkeys(answers)), (contexts[i],), near)


def _hotpot(content: Sequence[Any], path: str) -> Iterator[Question]:
    for number, item in enumerate(content):
        where = f"{path}, [{number}]"
        documents = {title: f"{title}\n{''.join(sentences)}" for title, sentences in _field(item, "context", where)}
        named = dict.fromkeys(title for title, _ in _field(item, "supporting_facts", where))
        missing = [title for title in named if title not in documents]
        if missing:
            raise DataError(f"{where}: supporting fact {missing[0]!r} is not among the titles of its context.")
        gold = tuple(documents[title] for title in named)
        near = tuple(text for title, text in documents.items() if title not in named)
        answer = _text(item, "answer", where)
        if not answer:
            raise DataError(f"{where} has an empty answer.")
        yield Question(_text(item, "question", where), (answer,), gold, near)


def _text(record: Any, name: str, where: str) -> str:
    value = _field(record, name, where)
    if not isinstance(value, str):
        raise DataError(f"{where}: {name!r} is a {type(value).__name__}; want a text.")
    return value


def _field(record: Any, name: str, where: str) -> Any:
    if not isinstance(record, Mapping) or name not in record:
        raise DataError(f"{where} has no field {name!r}.")
    return record[name]


def make_question(size: int, rng: random.Random, question: Question, documents: Sequence[str]) -> Draft:
    """The question among documents: those that answer it, then distractors of together about `size` words.

    Distractors come from the same subject first, then from all documents; where they run out they repeat. The last
    one is cut at a word, so that prompts come close to their budget whatever the length of documents.
    """
    gold = set(question.gold)
    near = list(question.near)
    rng.shuffle(near)
    others = [text for text in documents if text not in gold and text not in set(near)]
    rng.shuffle(others)
    distractors, room = [], size
    pool = [*near, *others]
    while room > 0 and pool:
        for text in pool:
            words = text.split(" ")
            distractors.append(" ".join(words[:room]))
            room -= len(words)
            if room <= 0:
                break
    shown = [*question.gold, *distractors]
    rng.shuffle(shown)
    numbered = [f"Document {number}:\n{text}" for number, text in enumerate(shown, start=1)]
    context, starts = joined_with_starts(numbered, "\n\n")
    needles = tuple(
        Needle(text, starts[place] + len(f"Document {place + 1}:\n"))
        for place, text in enumerate(shown)
        if text in gold
    )
    return Draft(
        f"{_INSTRUCTION}\n\nThese are the documents.\n\n",
        context,
        f"\n\n{_INSTRUCTION}\n\nQuestion: {question.text}",
        "Answer:",
        question.answers,
        needles,
    )
