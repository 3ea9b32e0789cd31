import json
from contextlib import contextmanager
from dataclasses import replace

import pytest
from cheap_tokenizer import CheapTokenizer

from elastic_jax.errors import ConfigError, DataError
from elastic_jax.journal import Journal
from eval.harness import runner
from eval.harness.backends.scripted import ScriptedBackend
from eval.harness.encoding import Encoder
from eval.harness.runner import Outcome, Shard, measure, records_of
from eval.harness.thinking import answer_of
from eval.samples import Arm, Message, Rendered, Reply, Sample, Showing, Verdict
from eval.tasks import Task, loaded_group

ARMS = [Arm("full"), Arm("all-sparse", "sparse")]
BOTH_ORDERS = (Showing("ab", (0, 1)), Showing("ba", (1, 0)))


def judge(sample, showing, reply):
    return Verdict({"right": float(reply.text in sample.references)}, "ok" if reply.text else "empty", reply.text)


def template(sample, showing):
    return Rendered((Message.of("user", f"{sample.fields['text']} {showing.label}"),))


TASK = Task("toy", "generate", template, judge, "right")


def group(count=6, task=TASK, views=lambda sample: (Showing(),)):
    samples = [
        Sample(f"toy/{i}", {"text": f"question {i}"}, (f"answer {i}",), {"length": 8}, 4, {"place": i})
        for i in range(count)
    ]
    return loaded_group(task, samples, tokens=10, views=views)


def oracle(prompt):
    return prompt.sample.references[0]


def run(path, groups, answer=oracle, *, arms=ARMS, **options):
    asked = []

    def counted(prompt):
        asked.append((prompt.sample.uid, prompt.showing.label))
        return answer(prompt)

    backend = ScriptedBackend("toy", counted)
    with Journal(path, {"seed": 0}) as journal:
        measure(backend, Encoder(CheapTokenizer(), chat=True), groups, arms, journal, batch_tokens=64, **options)
        return asked, {arm.name: records_of(groups[0], arm.name, journal) for arm in arms}


def test_every_sample_is_asked_under_every_arm_and_told_in_full(tmp_path):
    asked, records = run(tmp_path / "journal.jsonl", [group()])
    assert len(asked) == 12
    for arm in ARMS:
        assert [record["uid"] for record in records[arm.name]] == [f"toy/{i}" for i in range(6)]
    record = records["full"][3]
    assert record["scores"] == {"right": 1} and record["main"] == "right" and record["status"] == "ok"
    assert record["axes"] == {"length": 8} and record["notes"] == {"place": 3} and record["text"] == "answer 3"
    assert record["prompt_tokens"] == len(CheapTokenizer()("<user>question 3 </user><assistant>")["input_ids"])


def test_the_bar_ends_where_the_work_does(tmp_path, monkeypatch):
    bars = []

    @contextmanager
    def bar(total):
        bars.append([total])
        yield bars[-1].append

    monkeypatch.setattr(runner, "token_progress", bar)
    run(tmp_path / "journal.jsonl", [group(2)], arms=ARMS[:1])
    run(tmp_path / "journal.jsonl", [group(3)])
    assert bars == [[20, 10, 10], [40, 10, 10, 10, 10]]


def test_more_samples_and_more_arms_ask_only_for_those(tmp_path):
    path = tmp_path / "journal.jsonl"
    run(path, [group(2)], arms=ARMS[:1])
    asked, records = run(path, [group(3)])
    assert len(asked) == 1 + 3
    assert [len(found) for found in records.values()] == [3, 3]


def test_showings_are_kept_apart(tmp_path):
    asked, records = run(tmp_path / "j.jsonl", [group(2, views=lambda sample: BOTH_ORDERS)], arms=ARMS[:1])
    assert asked == [("toy/0", "ab"), ("toy/0", "ba"), ("toy/1", "ab"), ("toy/1", "ba")]
    assert [tuple(record["showing"]["order"]) for record in records["full"]] == [(0, 1), (1, 0)] * 2


def test_prompts_too_long_are_counted_and_never_asked(tmp_path):
    asked, records = run(tmp_path / "j.jsonl", [group()], limit=10)
    assert asked == []
    assert [(r["status"], r["scores"]) for r in records["full"]] == [("too_long", {"right": 0})] * 6


def test_an_answer_counts_only_after_the_thinking_that_the_template_opened(tmp_path):
    class Opening(CheapTokenizer):
        def apply_chat_template(self, turns, **options):
            return super().apply_chat_template(turns, **options) + "<think>\n"

    replies = {"toy/0": "answer 0, or", "toy/1": "answer 0?</think>answer 1", "toy/2": "<think>answer 2"}
    backend = ScriptedBackend("toy", lambda prompt: Reply(replies[prompt.sample.uid], finish="length"))
    task = replace(TASK, metric=lambda sample, showing, reply: judge(sample, showing, said(reply)))
    said = lambda reply: replace(reply, text=answer_of(reply.text))  # noqa: E731
    with Journal(tmp_path / "j.jsonl", {}) as journal:
        found = measure(backend, Encoder(Opening(), chat=True), [group(3, task)], ARMS[:1], journal, batch_tokens=1)
    assert [(r["status"], r["scores"]["right"]) for r in found] == [("unfinished", 0), ("ok", 1), ("unfinished", 0)]
    assert found[0]["text"] == "<think>answer 0, or"


def test_results_of_changed_records_are_made_anew(tmp_path):
    path = tmp_path / "journal.jsonl"

    def records(texts, answers):
        samples = [Sample(f"toy/{i}", {"text": texts[i]}, (answers[i],), {}, 4) for i in range(3)]
        return loaded_group(TASK, samples, tokens=10)

    def measured(changed, answer):
        asked = []
        backend = ScriptedBackend("toy", lambda prompt: asked.append(prompt.sample.uid) or answer)
        with Journal(path, {}) as journal:
            encoder = Encoder(CheapTokenizer(), chat=True)
            found = measure(backend, encoder, [changed], ARMS[:1], journal, batch_tokens=64)
        return asked, [record["scores"]["right"] for record in found]

    assert measured(records("abc", "xyz"), "x")[1] == [1, 0, 0]
    assert measured(records("abc", "xxz"), "never") == ([], [1, 1, 0]), "another reference: scored anew, not asked"
    assert measured(records("aqc", "xxz"), "z") == (["toy/1"], [1, 0, 0]), "another question: asked anew"
    assert measured(records("aqc", "xxz"), "never") == ([], [1, 0, 0])

    lines = path.read_text().splitlines()
    before = [json.loads(line) for line in lines[1:4]]  # as an earlier version left them, which kept no digests
    for line in before:
        del line["value"]["content"]
    path.write_text("\n".join([lines[0], *map(json.dumps, before)]) + "\n")
    assert measured(records("abc", "xyz"), "never") == ([], [1, 0, 0]), "the same: taken over"
    path.write_text("\n".join([lines[0], *map(json.dumps, before)]) + "\n")
    assert measured(records(["a", "b longer", "c"], "xyz"), "y") == (["toy/1"], [1, 1, 0]), "not as many tokens"


def test_two_samples_of_one_name_are_refused(tmp_path):
    with pytest.raises(DataError, match="sample toy/0 is there twice"):
        run(tmp_path / "j.jsonl", [group(1), group(1)])


def test_a_sample_that_fails_is_listed_and_asked_for_again(tmp_path):
    path, outcome = tmp_path / "j.jsonl", Outcome()

    def failing(prompt):
        return Reply(error="down") if prompt.sample.uid == "toy/2" else oracle(prompt)

    _, records = run(path, [group()], failing, arms=ARMS[:1], outcome=outcome)
    assert list(outcome.errors.values()) == ["down"] and len(records["full"]) == 5
    asked, records = run(path, [group()], arms=ARMS[:1])
    assert asked == [("toy/2", "")] and len(records["full"]) == 6


def test_a_backend_that_is_down_stops_the_run(tmp_path):
    with pytest.raises(DataError, match="10 samples in a row failed, the last with: down"):
        run(tmp_path / "j.jsonl", [group(30)], lambda prompt: Reply(error="down"))


def test_an_empty_reply_is_counted(tmp_path):
    _, records = run(tmp_path / "j.jsonl", [group(1)], lambda prompt: "", arms=ARMS[:1])
    assert (records["full"][0]["status"], records["full"][0]["scores"]["right"]) == ("empty", 0)


def test_a_task_that_the_backend_cannot_do_is_refused(tmp_path):
    class Mute(ScriptedBackend):
        kinds = frozenset(("score",))

    with Journal(tmp_path / "j.jsonl", {}) as journal, pytest.raises(ConfigError, match="task toy wants .* generate"):
        measure(Mute("mute", oracle), None, [group()], ARMS, journal, batch_tokens=1)


def test_a_shard_outside_is_refused():
    with pytest.raises(ConfigError, match="shard is 4/4"):
        Shard(4, 4)
