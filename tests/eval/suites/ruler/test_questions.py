import json
import random

import pytest

from elastic_jax.errors import DataError
from eval.suites.ruler.questions import make_question, read_questions

HOTPOT = [
    {
        "question": "Who wrote it?",
        "answer": "Ana",
        "supporting_facts": [["Book", 0], ["Ana", 1]],
        "context": [["Book", ["A book.", " By Ana."]], ["Ana", ["Ana is a writer."]], ["Rain", ["It rains."]]],
    }
]


def write(path, content):
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def test_hotpotqa_files_are_read_too(tmp_path):
    file = read_questions(write(tmp_path / "hotpot.json", HOTPOT))
    (question,) = file.questions
    assert question.answers == ("Ana",)
    assert question.gold == ("Book\nA book. By Ana.", "Ana\nAna is a writer.")
    assert question.near == ("Rain\nIt rains.",)
    draft = make_question(30, random.Random(0), question, file.documents)
    assert all(text in draft.context for text in question.gold)
    assert draft.context.count("Document ") >= 3
    assert [needle.text for needle in draft.needles if needle.text in question.gold]


def squad(**question):
    qa = {"question": "Q?", "answers": [{"text": "A"}]} | question
    return {"data": [{"paragraphs": [{"context": "A B", "qas": [{k: v for k, v in qa.items() if v is not None}]}]}]}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "cannot be read as JSON"),
        ({}, "no field 'data'"),
        ([], "no question with an answer"),
        (squad(answers=[]), r"data\[0\].paragraphs\[0\].qas\[0\] has an empty list of answers"),
        (squad(answers=None), r"qas\[0\] has no field 'answers'"),
        (squad(question=None), r"qas\[0\] has no field 'question'"),
        (squad(is_impossible=True), "no question with an answer"),
        ([HOTPOT[0] | {"answer": ""}], r"\[0\] has an empty answer"),
        ([HOTPOT[0] | {"supporting_facts": [["Nobody", 0]]}], "'Nobody' is not among the titles"),
        ([1], r"\[0\] has no field 'context'"),
    ],
)
def test_files_that_cannot_be_used_are_refused_by_place(tmp_path, content, message):
    path = write(tmp_path / "questions.json", content)
    with pytest.raises(DataError, match=message) as refusal:
        read_questions(path)
    assert str(path) in str(refusal.value)


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(DataError, match="nowhere"):
        read_questions(tmp_path / "nowhere.json")
