"""Files of records and texts: training data, prompts, benchmarks, haystacks."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from outside_kind import Kind, dump, lines

from elastic_jax.cli.generate import read_prompts
from elastic_jax.errors import DataError
from eval.samples import Reply
from eval.suites.haystack import read_texts
from eval.suites.longbench.v1 import longbench_groups
from eval.suites.longbench.v2 import longbench_v2_group
from eval.suites.rewardbench import long, memory
from eval.suites.routing.tasks import record_groups
from eval.suites.ruler.questions import read_questions
from eval.tasks import ONCE
from train.config import RouterTrainConfig
from train.data.foreign import read_evidence
from train.data.sources import packed_samples, parse_records
from train.data.tables import read_rows
from train.reward.data.readers import read_judge_records, read_preferences
from train.reward.synthesis.short_samples import read_short_samples

LONG = {
    "prompt_template": [{"role": "user", "content": "Who keeps the lamp?"}],
    "chosen": "Ann keeps the lamp.",
    "rejected": "Bob does.",
    "subtype": "same",
    "source": "made up",
    "ctx_length_for_length": "4k",
}


RANKED = LONG | {
    "tasktype": "BestOfN",
    "subtype": "2",
    "candidates": ["Ann keeps the lamp.", "Bob does."],
    "candidates_score": [2, 1],
}


RECORD = {
    "context": "A lamp.",
    "question": "Who?",
    "answer": "Ann",
    "metadata": {"task": "Single QA", "is_prefix": True},
}


EVIDENCE = {"input": "Who keeps it?", "context": "Ann keeps it.", "answers": ["Ann"], "answer_char": 0, "support": [0]}


SQUAD = {
    "data": [
        {
            "title": "Lamps",
            "paragraphs": [
                {
                    "context": "Ann keeps the lamp.",
                    "qas": [{"id": "1", "question": "Who?", "answers": [{"text": "Ann", "answer_start": 0}]}],
                }
            ],
        }
    ]
}


HOTPOT = [
    {
        "_id": "1",
        "question": "Who?",
        "answer": "Ann",
        "supporting_facts": [["Lamps", 0]],
        "context": [["Lamps", ["Ann keeps the lamp."]], ["Beds", ["Bob keeps the bed."]]],
    }
]


MEMORY = {
    "question": "Who keeps the lamp?",
    "chosen": "Ann keeps the lamp.",
    "rejected": "Bob does.",
    "task": "sequential-noise",
    "subtask": "musique",
    "ctx_length": "8k",
}


LONGBENCH = {"input": "Who?", "context": "Ann.", "answers": ["Ann"], "all_classes": ["Ann", "Bob"], "_id": "1"}


LONGBENCH2 = {
    "_id": "1",
    "question": "Who?",
    "context": "Ann.",
    "answer": "A",
    "difficulty": "easy",
    "length": "short",
    **{f"choice_{letter}": letter for letter in "ABCD"},
}


PACKED = {
    "input_ids": [[5, 6, 7, 8, 9, 3]],
    "labels": [[-100, -100, 7, -100, 9, 3]],
    "seq_lengths": [0, 3, 6],
    "task_ids": [0, 1],
    "range_ids": [[0, 1, 0, 1, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0, 0, 0]],
}


def _longbench(task: str, *, extended: bool = False) -> Callable[[Path], object]:
    """Reads the records and scores a reply to each."""

    def parse(folder: Path) -> None:
        (group,) = longbench_groups(folder, [task], extended=extended, count=None, tokens=100)
        for index in range(group.count):
            group.task.metric(group.build(index), ONCE[0], Reply("<think>no</think>Ann 1"))

    return parse


def _prompts(file: Path) -> None:
    for prompt in read_prompts(str(file)):
        if isinstance(prompt, DataError):
            raise prompt


PREFERENCE = {
    "prompt": [{"role": "user", "content": "Who keeps the lamp?"}],
    "chosen": [{"role": "assistant", "content": "Ann keeps it."}],
    "rejected": ["Bob does.", "Nobody."],
    "margin": 0.5,
    "context": "the lamp",
    "kinds": ["wrong", "wrong"],
}


CONVERSATIONS = {
    side: [*PREFERENCE["prompt"], {"role": "assistant", "content": text}]
    for side, text in (("chosen", "Ann."), ("rejected", "Bob."))
}


LONGRM = {"chat_template": PREFERENCE["prompt"], "chosen": "Ann.", "rejects": ["Bob.", "Cy."], "context": [1, 2]}


JUDGED = {"prompt": PREFERENCE["prompt"], "answer": "Both are good. [[4]]", "context": "the lamp"}


SHORT = {
    "id": "1",
    "perspective": "faithfulness",
    "question": "Who?",
    "response": "Ann.",
    "chunks": ["Ann keeps it.", {"text": "Bob sleeps.", "critical": False}],
    "reference": "Ann",
    "judgements": {"first": "[[4]]", "second": "[[5]]"},
}


def _table(name: str) -> Callable[[Path], object]:
    """Training records as Parquet, or as `datasets` saves them."""

    def write(folder: Path) -> None:
        import pyarrow
        import pyarrow.parquet

        table = pyarrow.Table.from_pylist([RECORD, RECORD])
        if name.endswith(".parquet"):
            pyarrow.parquet.write_table(table, folder / name)
            return
        with (
            pyarrow.OSFile(str(folder / "data.arrow"), "wb") as sink,
            pyarrow.ipc.new_stream(sink, table.schema) as out,
        ):
            out.write_table(table)
        (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": "data.arrow"}], "_split": None}))

    return write


def _lines(name: str, parse: Callable[[Path], object], *records: object) -> Kind:
    """JSON lines in one file, which `parse` reads."""
    return Kind(lines(name, *records), name, lambda folder: parse(folder / name), "jsonl")


RECORDS = {
    "haystack": Kind(lambda f: (f / "t.txt").write_text("Ann keeps it."), "t.txt", lambda f: read_texts(f), "bytes"),
    "prompt": Kind(
        lambda f: (f / "p.txt").write_text("Who?\nWhat?"), "p.txt", lambda f: _prompts(f / "p.txt"), "bytes"
    ),
    "packed rows": _lines("r.jsonl", lambda f: packed_samples(read_rows(f), RouterTrainConfig()), PACKED, PACKED),
    "training records, metadata as text": _lines(
        "r.jsonl",
        lambda f: parse_records(read_rows(f), f.parent),
        RECORD | {"metadata": "{'task': 'Code', 'is_prefix': True}"},
    ),
    "table of training records": Kind(
        _table("r.parquet"), "r.parquet", lambda f: parse_records(read_rows(f / "r.parquet"), f), "bytes"
    ),
    "saved data set": Kind(_table("r.arrow"), "data.arrow", lambda f: parse_records(read_rows(f), f), "bytes"),
    "saved data set, state": Kind(_table("r.arrow"), "state.json", lambda f: parse_records(read_rows(f), f), "json"),
    "preferences": _lines("r.jsonl", read_preferences, PREFERENCE, LONGRM),
    "preferences, conversations": _lines("r.jsonl", read_preferences, CONVERSATIONS, CONVERSATIONS),
    "judge records": _lines("r.jsonl", read_judge_records, JUDGED, JUDGED),
    "short samples": _lines("r.jsonl", read_short_samples, SHORT, SHORT | {"id": "2"}),
    "LongBench, summaries": Kind(lines("qmsum.jsonl", LONGBENCH), "qmsum.jsonl", _longbench("qmsum"), "jsonl"),
    "LongBench, Chinese": Kind(
        lines("multifieldqa_zh.jsonl", LONGBENCH), "multifieldqa_zh.jsonl", _longbench("multifieldqa_zh"), "jsonl"
    ),
    "training records": _lines("r.jsonl", lambda f: parse_records(read_rows(f), f.parent), RECORD, RECORD),
    "question files": _lines("e.jsonl", read_evidence, EVIDENCE),
    "prompts": _lines("p.jsonl", _prompts, {"prompt": "a"}, {"prompt": "b"}),
    "SQuAD": Kind(dump("s.json", SQUAD), "s.json", lambda f: read_questions(f / "s.json"), "json"),
    "HotpotQA": Kind(dump("h.json", HOTPOT), "h.json", lambda f: read_questions(f / "h.json"), "json"),
    "LongBench": Kind(lines("trec.jsonl", LONGBENCH), "trec.jsonl", _longbench("trec"), "jsonl"),
    "LongBench-E": Kind(
        lines("passage_count_e.jsonl", LONGBENCH | {"answers": ["1"], "length": 5000}),
        "passage_count_e.jsonl",
        _longbench("passage_count", extended=True),
        "jsonl",
    ),
    "LongBench, code": Kind(lines("lcc.jsonl", LONGBENCH, LONGBENCH), "lcc.jsonl", _longbench("lcc"), "jsonl"),
    "records to route": _lines("r.jsonl", lambda f: record_groups(f, 2, tokens=9), RECORD, RECORD),
    "LongBench v2": Kind(
        dump("data.json", [LONGBENCH2]),
        "data.json",
        lambda f: longbench_v2_group(f, forced=True, count=None, tokens=100),
        "json",
    ),
    "Long-RewardBench": Kind(lines("Summ.jsonl", LONG, RANKED), "Summ.jsonl", long.read_folder, "jsonl"),
    "MemoryRewardBench": Kind(
        lines("Long-context_Reasoning.jsonl", MEMORY),
        "Long-context_Reasoning.jsonl",
        memory.read_folder,
        "jsonl",
    ),
}
