import json

import numpy as np
import pytest
from tiny_text import tiny_tokenizer

from elastic_jax.errors import DataError
from elastic_jax.text.split import split_of
from train.config import DataConfig
from train.data.builders import Builder, build_records
from train.data.corpus import Corpus, from_folder, from_standard_library
from train.data.needles import CITIES, NAMES, WORDS
from train.data.records import CODE, ICL, MULTIHOP_QA, SINGLE_QA, SUMMARIZATION
from train.data.windows import Windows

LENGTHS = DataConfig(min_tokens=400, max_tokens=900, evidence_share=0.0)
FROM_QUESTIONS = DataConfig(min_tokens=400, max_tokens=600, evidence_share=1.0)
COUNTS = {SINGLE_QA: 3, MULTIHOP_QA: 3, SUMMARIZATION: 3, CODE: 3, ICL: 3}


@pytest.fixture(scope="module")
def builder():
    return Builder(from_standard_library(), tiny_tokenizer(), LENGTHS, seed=1)


@pytest.fixture(scope="module")
def records(builder):
    return build_records(builder, COUNTS)


def test_every_task_is_built_in_the_numbers_asked_for(records):
    assert [record.task for record in records] == [task for task, count in COUNTS.items() for _ in range(count)]


def test_the_same_seed_gives_the_same_records_and_another_seed_others(builder, records):
    assert build_records(builder, COUNTS) == records
    other = Builder(builder.corpus, tiny_tokenizer(), LENGTHS, seed=2)
    assert build_records(other, COUNTS) != records


def test_records_have_about_the_length_asked_for(builder, records):
    for record in records:
        assert 100 < builder.windows.count(record.context + record.question + record.answer) <= 900


def test_a_needle_answer_is_in_the_context_and_nowhere_else(records):
    for record in records[:3]:
        for sentence in filter(None, record.answer.split(". ")):
            assert record.context.count(sentence.rstrip(".")) == 1
            assert sentence not in record.question


def test_two_hops_need_two_separate_sentences(records):
    for record in records[3:6]:
        works, stands = record.answer.rstrip(".").split(". ")
        assert works in record.context and stands in record.context
        assert stands.rsplit(" ", 1)[1] not in record.question


def test_few_shot_answers_are_among_the_labels_shown(records):
    for record in records[12:]:
        assert record.question.endswith("Label:")
        assert f"Label: {record.answer}" in record.context


def test_only_training_words_are_drawn():
    assert all(split_of(word) == "train" for words in (NAMES, CITIES, WORDS) for word in words)


def write_folder(folder):
    prose = "A plain sentence stands here. Another one follows it.\n\n" * 120
    names = [name for name in ("one.txt", "two.txt", "three.txt", "four.txt") if split_of(name) == "train"]
    for name in names:
        (folder / name).write_text(prose)
    rows = [
        {"id": "a", "input": "Who?", "context": "x " * 900 + "It was Ada.", "answers": ["Ada"], "gold_index": 3},
        {
            "id": "b",
            "input": "Where?",
            "context": "Bo has the key. Bo is in Rome.",
            "answers": ["Rome"],
            "support": [0, 1],
        },
        {"id": "c", "input": "Where?", "facts": ["It fell.", "It is in Oslo."], "answers": ["Oslo"], "support": [1]},
        {"input": "no answers"},
    ]
    (folder / "qa.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return names


def test_a_folder_of_texts_and_questions_is_understood(tmp_path):
    names = write_folder(tmp_path)
    corpus = from_folder(tmp_path)
    assert len(corpus.prose) == len(names)
    expected = {"a": SINGLE_QA, "b": MULTIHOP_QA, "c": SINGLE_QA}
    kept = [task for name, task in expected.items() if split_of(name) == "train"]
    assert [item.task for item in corpus.evidence] == kept
    builder = Builder(corpus, tiny_tokenizer(), FROM_QUESTIONS)
    for index in range(6):
        record = builder.record(SINGLE_QA, index)
        assert record.answer.rstrip(".") in record.context


def test_a_story_longer_than_the_sample_gives_way_to_other_records(tmp_path):
    write_folder(tmp_path)
    row = {"input": "Where?", "facts": ["It fell down again."] * 400, "answers": ["Oslo"], "support": [1, 2]}
    (tmp_path / "qa.jsonl").write_text("\n".join(json.dumps({"id": f"s{i}", **row}) for i in range(8)))
    builder = Builder(from_folder(tmp_path), tiny_tokenizer(), FROM_QUESTIONS)
    for index in range(4):
        assert builder.windows.count(builder.record(MULTIHOP_QA, index).context) <= 600


def test_excluded_files_are_not_read(tmp_path):
    write_folder(tmp_path)
    (tmp_path / "qa.jsonl").write_text("not json")
    assert from_folder(tmp_path, ["*.jsonl"]).evidence == ()
    with pytest.raises(DataError, match="qa.jsonl:1: not valid JSON"):
        from_folder(tmp_path)


@pytest.mark.parametrize(
    "text",
    [
        '{"input": "q", "answers": []}',
        '{"input": "q", "answers": [""], "context": "c"}',
        '{"input": "q", "answers": ["a"], "context": 1}',
        '{"input": "q", "answers": ["a"]}',
    ],
)
def test_malformed_question_files_are_named(tmp_path, text):
    (tmp_path / "qa.jsonl").write_text(text)
    with pytest.raises(DataError, match="qa.jsonl:1"):
        from_folder(tmp_path)


def test_a_folder_without_texts_is_refused(tmp_path):
    with pytest.raises(DataError, match="no such folder"):
        from_folder(tmp_path / "missing")
    with pytest.raises(DataError, match="no usable"):
        from_folder(tmp_path)


def test_nothing_asked_for_is_refused(builder):
    with pytest.raises(DataError, match="empty"):
        build_records(builder, {SINGLE_QA: 0})
    with pytest.raises(DataError, match="min_tokens"):
        Builder(Corpus(("x",), (), ()), tiny_tokenizer(), DataConfig(min_tokens=10, max_tokens=20))


def test_windows_cut_to_the_token_and_keep_the_place():
    windows = Windows(tiny_tokenizer())
    text = "\n".join(f"Line number {i} says {i * i}." for i in range(300))
    rng = np.random.default_rng(0)
    assert windows.count(windows.head(text, 50)) == 50
    for place in (0, len(text) // 2, len(text) - 1):
        piece = windows.around(text, place, 80, rng)
        line = text[: place + 1].count("\n")
        assert f"number {line} says" in piece and windows.count(piece) <= 81
