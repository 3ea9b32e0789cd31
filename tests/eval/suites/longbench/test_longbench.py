"""Records that look like the published ones, made here."""

import json
import sys

import pytest
from cheap_tokenizer import CheapTokenizer

from elastic_jax.errors import ConfigError, DataError
from eval.harness.encoding import Encoder, make_prompt
from eval.samples import Reply, Showing
from eval.suites.longbench.v1 import FORMS, longbench_groups
from eval.suites.longbench.v2 import longbench_v2_group
from eval.suites.metrics import _segmenter
from eval.verbs.longbench import E_TASKS

ANSWERS = {
    "passage_count": ["7"],
    "passage_retrieval_en": ["Paragraph 7"],
    "passage_retrieval_zh": ["段落7"],
    "trec": ["Place"],
    "lsht": ["Place"],
}


def record(name, **changes):
    made = {
        "input": "Where does Ana live?",
        "context": "Ana lives in Oslo. " * 30,
        "answers": ANSWERS.get(name, ["Oslo", "in Oslo, Norway"]),
        "length": 90,
        "dataset": name,
        "language": "en",
        "all_classes": ["Place", "Date"] if name in ("trec", "lsht") else None,
        "_id": "abc",
    }
    return {key: value for key, value in (made | changes).items() if value != "left out"}


def write(folder, name, records, suffix=".jsonl"):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}{suffix}").write_text("".join(json.dumps(item) + "\n" for item in records))


@pytest.mark.parametrize("name", FORMS)
def test_every_task_asks_its_question_and_knows_the_right_answer(tmp_path, name):
    write(tmp_path / "data", name, [record(name), record(name, _id="def")])
    (group,) = longbench_groups(tmp_path, [name], extended=False, count=None, tokens=1000)
    assert list(group.uids) == [f"{name}/abc", f"{name}/def"]
    sample = group.build(0)
    text = group.task.template(sample, Showing()).messages[0].text
    assert "Ana lives in Oslo. Ana lives" in text and "{" not in text
    asks = name not in ("gov_report", "multi_news", "vcsum", "passage_count", "lcc")
    assert ("Where does Ana live?" in text) == asks
    right = group.task.metric(sample, Showing(), Reply(sample.references[-1]))
    assert right.status == "ok" and right.scores["score"] == pytest.approx(1, abs=1e-8)
    thought = group.task.metric(
        sample, Showing(), Reply(f"<think>\nBergen 8 Date?\n</think>\n\n{sample.references[-1]}")
    )
    assert thought.scores == right.scores
    wrong = group.task.metric(sample, Showing(), Reply("quite else 99"))
    assert wrong.scores["score"] < 0.35
    assert group.task.metric(sample, Showing(), Reply(" \n")).status == "empty"


def test_tasks_of_examples_count_the_first_line_only(tmp_path):
    write(tmp_path, "trec", [record("trec")])
    (group,) = longbench_groups(tmp_path, ["trec"], extended=False, count=None, tokens=1000)
    for text, score in (("\nPlace\nDate", 1), ("Date\nPlace", 0)):
        assert group.task.metric(group.build(0), Showing(), Reply(text)).scores["score"] == score
    assert not group.task.template(group.build(0), Showing()).chat


def test_the_extended_set_is_split_by_words(tmp_path):
    lengths = [3999, 4000, 7999, 8000]
    write(tmp_path, "qasper_e", [record("qasper", length=n, _id=str(n)) for n in lengths])
    (group,) = longbench_groups(tmp_path, ["qasper"], extended=True, count=None, tokens=1000)
    assert [group.build(i).axes["words"] for i in range(4)] == ["0-4k", "4-8k", "4-8k", "8k+"]
    assert set(E_TASKS) < set(FORMS) and len(E_TASKS) == 13


def test_long_prompts_lose_their_middle(tmp_path):
    text = " ".join(f"w{i}" for i in range(3000))
    write(tmp_path, "qasper", [record("qasper", context=text)])
    (group,) = longbench_groups(tmp_path, ["qasper"], extended=False, count=1, tokens=500)
    sample = group.build(0)
    content = group.task.template(sample, Showing())
    made = make_prompt(content, Encoder(CheapTokenizer(), chat=True), group.task.policy, 500, sample, Showing())
    cut = made.messages[0].text
    assert 480 - sample.max_new_tokens <= len(made.prompt_ids) <= 500 - sample.max_new_tokens and made.cut_tokens > 2000
    assert cut.startswith("Below is a scientific article") and cut.endswith("Answer:") and "w1500 " not in cut


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("qasper", {"answers": []}, r"field 'answers' holds \[\]; want a list"),
        ("qasper", {"answers": "left out"}, "field 'answers' is missing"),
        ("qasper", {"answers": [3]}, "field 'answers' holds"),
        ("qasper", {"context": "left out"}, "field 'context' is missing"),
        ("qasper", {"input": 3}, "field 'input' holds 3; want a text"),
        ("passage_count", {"answers": ["7", "seven"]}, "answers is .*want whole numbers"),
        ("trec", {"all_classes": ["Date"]}, "all_classes is .*the answer among them"),
        ("trec", {"all_classes": ["Place", 3]}, "field 'all_classes' holds"),
    ],
)
def test_records_that_cannot_be_used_are_refused_by_file_and_line(tmp_path, name, changes, message):
    write(tmp_path, name, [record(name), record(name, **changes)])
    with pytest.raises(DataError, match=f"{name}.jsonl:2: {message}"):
        longbench_groups(tmp_path, [name], extended=False, count=None, tokens=1)


def test_records_that_share_an_id_are_two_samples(tmp_path):
    write(tmp_path, "qasper", [record("qasper", _id=name) for name in ("a", "a", "a#2", "a", "")])
    (group,) = longbench_groups(tmp_path, ["qasper"], extended=False, count=None, tokens=1)
    assert (
        [group.build(i).uid for i in range(5)]
        == list(group.uids)
        == [
            "qasper/a",
            "qasper/a#2",
            "qasper/a#2#2",
            "qasper/a#3",
            "qasper/4",
        ]
    )


def test_chinese_tasks_want_their_segmenter_before_any_work(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "jieba", None)
    _segmenter.cache_clear()
    with pytest.raises(ConfigError, match=r"pip install 'elastic-jax\[longbench\]'"):
        longbench_groups(tmp_path, ["dureader"], extended=False, count=None, tokens=1)


def test_what_is_not_there_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="no task 'squad'"):
        longbench_groups(tmp_path, ["squad"], extended=False, count=None, tokens=1)
    with pytest.raises(DataError, match="has no qasper_e.jsonl"):
        longbench_groups(tmp_path, ["qasper"], extended=True, count=None, tokens=1)
    with pytest.raises(DataError, match="no file or folder"):
        longbench_groups(tmp_path / "nowhere", ["qasper"], extended=False, count=None, tokens=1)


def question(**changes):
    choices = {f"choice_{letter}": f"Choice {letter}" for letter in "ABCD"}
    made = {"_id": "1", "domain": "x", "difficulty": "easy", "length": "short", "question": "Which?", "answer": "C"}
    return made | {"context": "Long text."} | choices | changes


def test_four_way_questions(tmp_path):
    (tmp_path / "data.json").write_text(json.dumps([question(), question(_id="2", difficulty="hard")]))
    group = longbench_v2_group(tmp_path, forced=False, count=None, tokens=1000)
    sample = group.build(0)
    text = group.task.template(sample, Showing()).messages[0].text
    assert "Long text." in text and "(D) Choice D" in text
    assert sample.axes == {"difficulty": "easy", "size": "short"}
    for reply, correct, status in (
        ("The correct answer is (C).", 1, "ok"),
        ("The correct answer is B", 0, "ok"),
        ("It is C", 0, "unparsed"),
        ("", 0, "empty"),
        ("<think>The correct answer is (C)", 0, "empty"),
        ("<think>(A)? The correct answer is (A).</think>The correct answer is (C).", 1, "ok"),
    ):
        verdict = group.task.metric(sample, Showing(), Reply(reply))
        assert (verdict.scores["correct"], verdict.status) == (correct, status)

    forced = longbench_v2_group(tmp_path, forced=True, count=1, tokens=1000)
    assert forced.count == 1 and forced.task.template(sample, Showing()).options == tuple("ABCD")
    likely = Reply(numbers={"option_0": -3, "option_1": -2, "option_2": -0.1, "option_3": -4})
    verdict = forced.task.metric(sample, Showing(), likely)
    assert (verdict.scores["correct"], verdict.parsed) == (1, "C")


@pytest.mark.parametrize(
    ("changes", "message"), [({"answer": "E"}, "answer is 'E'"), ({"choice_B": None}, "field 'choice_B' holds None")]
)
def test_questions_that_cannot_be_used_are_refused(tmp_path, changes, message):
    (tmp_path / "data.json").write_text(json.dumps([question(), question(**changes)]))
    with pytest.raises(DataError, match=f"data.json:2: {message}"):
        longbench_v2_group(tmp_path, forced=False, count=None, tokens=1)
