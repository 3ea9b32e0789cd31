"""Every parser of an outside file, on damaged files: bounded time and memory, an error of ours or none, no stray write.

`FUZZ_CASES=20000 pytest -m slow tests/test_fuzz.py` tries as many damaged copies of each kind.
"""

from __future__ import annotations

import copy
import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml
from chat_tokenizers import chat_tokenizer
from checkpoints import GOLDEN
from gguf_files import write_gguf
from mutations import deep_json, mutate_bytes, mutate_json, survives
from transformers import PreTrainedTokenizerFast

from elastic_jax.cli.generate import read_prompts
from elastic_jax.config import ModelConfig
from elastic_jax.config.model import config_to_hf
from elastic_jax.errors import DataError
from elastic_jax.files import read_json, read_text
from elastic_jax.journal import Journal
from elastic_jax.journal import read_records as read_journals
from elastic_jax.settings import load_settings, settings_dict
from elastic_jax.text.chat import answered_texts
from elastic_jax.text.tokens import encode_chat, encode_text
from elastic_jax.weights import from_pretrained, save_pretrained
from elastic_jax.weights.gguf import open_gguf
from elastic_jax.weights.hf import open_directory
from elastic_jax.weights.router_only import open_router
from elastic_jax.weights.safetensors_dir import open_weights
from elastic_jax.weights.tokenizer import load_tokenizer
from eval.compare import compare_runs
from eval.harness.records import check_record
from eval.harness.routing import read_head_scores
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
from train.data.sources import parse_records
from train.data.tables import read_rows

TEMPLATE = (
    "{%- set day = strftime_now('%d %b %Y') if strftime_now is defined else '26 Jul 2024' -%}"
    "{%- for message in messages -%}"
    "{%- if message.role not in ('system', 'user', 'assistant') -%}"
    "{{ raise_exception('Unknown role ' ~ message.role) }}{%- endif -%}"
    "{{ '<|im_start|>' + message['role'] + '\\n' }}{{ message.content | trim }}{{ '<|im_end|>\\n' }}"
    "{%- endfor -%}{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}{%- endif -%}"
)
QUICK = 25
MANY = int(os.environ.get("FUZZ_CASES", "2000"))
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

ANSWERED = {
    "task": "vt",
    "uid": "vt/0",
    "showing": {"label": "answer0", "order": [0], "repeat": 0},
    "arm": "full",
    "axes": {"length": 8},
    "notes": {},
    "status": "ok",
    "main": "reward",
    "scores": {"reward": 0.5},
    "parsed": None,
    "references": ["Ann"],
    "text": "<think>Bob?</think>Ann",
    "finish": "stop",
    "prompt_tokens": 7,
    "cut_tokens": 0,
    "new_tokens": 2,
    "numbers": {"msr": 0.5},
}


class Kind(NamedTuple):
    """One kind of outside file: `write(folder)` makes valid ones, `damaged` is the one to change, `parse(folder)` reads
    them."""

    write: Callable[[Path], object]
    damaged: str
    parse: Callable[[Path], object]
    form: str
    """json, jsonl, yaml or bytes: what a change applies to; text is also changed byte by byte."""


def _copy(name: str, *files: str) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        for file in files or ("config.json", "model.safetensors"):
            shutil.copyfile(GOLDEN / name / file, folder / file)

    return write


def _dump(file: str, value: Any) -> Callable[[Path], object]:
    return lambda folder: (folder / file).write_text(json.dumps(value), encoding="utf-8")


def _lines(file: str, *records: Any) -> Callable[[Path], object]:
    return lambda folder: (folder / file).write_text("".join(json.dumps(r) + "\n" for r in records), encoding="utf-8")


def _sharded(folder: Path) -> None:
    save_pretrained(from_pretrained(GOLDEN / "llama3"), folder, max_shard_bytes=30_000, overwrite=True)


def _routers(folder: Path) -> None:
    model = from_pretrained(GOLDEN / "qwen3_tied")
    model.fresh_routers = False
    save_pretrained(model, folder, format="router", overwrite=True)


def _settings(folder: Path) -> None:
    (folder / "run.yaml").write_text(yaml.safe_dump(json.loads(json.dumps(settings_dict(RouterTrainConfig())))))


def _vocabulary(folder: Path) -> None:
    tokens = ["<s>", "</s>", *(chr(c) for c in range(33, 127)), "Ġ", "th", "the"]
    extra = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "smollm",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [3, 3] + [1] * (len(tokens) - 2),
        "tokenizer.ggml.merges": ["t h", "th e"],
        "tokenizer.ggml.bos_token_id": 0,
        "tokenizer.ggml.eos_token_id": 1,
    }
    write_gguf(folder / "model.gguf", "llama_tied", extra_metadata=extra)


def _config(folder: Path) -> None:
    config = ModelConfig.from_hf(read_json(folder / "config.json"))
    assert ModelConfig.from_hf(config_to_hf(config)).num_layers == config.num_layers


def _journal(folder: Path) -> None:
    read_journals(folder)
    Journal(folder / "journal.jsonl", {"tokens": 5}).close()


def _compared(folder: Path) -> None:
    _, values = read_journals(folder)
    for key, value in values.items():
        check_record(key, value)
    compare_runs(folder, folder, None, None)


def _longbench(task: str, *, extended: bool = False) -> Callable[[Path], object]:
    """Reads the records and scores a reply to each."""

    def parse(folder: Path) -> None:
        (group,) = longbench_groups(folder, [task], extended=extended, count=None, tokens=100)
        for index in range(group.count):
            group.task.metric(group.build(index), ONCE[0], Reply("<think>no</think>Ann 1"))

    return parse


def _tensors(folder: Path) -> None:
    source = open_gguf(folder / "model.gguf").source
    for name in source.tensors:
        source.read(name)


def _tokenizer(folder: Path) -> None:
    tokenizer = copy.deepcopy(chat_tokenizer())
    tokenizer.save_pretrained(folder)
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [1, 2], "stop_strings": ["###"]}))


def _encode(folder: Path) -> None:
    tokenizer = load_tokenizer(folder)
    encode_text(tokenizer, "A lamp, and a <|im_end|>.", begin=True)


def _prompts(file: Path) -> None:
    for prompt in read_prompts(str(file)):
        if isinstance(prompt, DataError):
            raise prompt


def _template(folder: Path) -> None:
    (folder / "chat_template.jinja").write_text(TEMPLATE, encoding="utf-8")


def _render(folder: Path) -> None:
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=chat_tokenizer().backend_tokenizer)
    tokenizer.chat_template = read_text(folder / "chat_template.jinja")
    turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Who?<|im_end|>"}]
    _, (whole,) = answered_texts(tokenizer, turns, ["<think>Hm.</think>Ann."])
    encode_chat(tokenizer, whole)


BASE = ModelConfig.from_hf(read_json(GOLDEN / "qwen3_tied" / "config.json"))
KINDS = {
    "config.json of Llama": Kind(_copy("llama3", "config.json"), "config.json", _config, "json"),
    "config.json with rope factors": Kind(_copy("llama_longrope", "config.json"), "config.json", _config, "json"),
    "config.json of Elastic Attention": Kind(_copy("official_qwen3", "config.json"), "config.json", _config, "json"),
    "config.json beside weights": Kind(_copy("qwen3_tied"), "config.json", from_pretrained, "json"),
    "safetensors": Kind(_copy("llama_tied"), "model.safetensors", from_pretrained, "bytes"),
    "safetensors index": Kind(_sharded, "model.safetensors.index.json", open_weights, "json"),
    "router_config.json": Kind(_routers, "router_config.json", lambda f: open_router(f, BASE), "json"),
    "GGUF": Kind(lambda f: write_gguf(f / "model.gguf", "llama_tied"), "model.gguf", _tensors, "bytes"),
    "GGUF vocabulary": Kind(_vocabulary, "model.gguf", lambda f: load_tokenizer(f / "model.gguf"), "bytes"),
    "tokenizer.json": Kind(_tokenizer, "tokenizer.json", _encode, "json"),
    "tokenizer_config.json": Kind(_tokenizer, "tokenizer_config.json", _encode, "json"),
    "stop strings": Kind(_tokenizer, "generation_config.json", _encode, "json"),
    "end tokens": Kind(
        lambda f: (_copy("llama_tied")(f), _tokenizer(f)), "generation_config.json", open_directory, "json"
    ),
    "chat template": Kind(_template, "chat_template.jinja", _render, "bytes"),
    "haystack": Kind(lambda f: (f / "t.txt").write_text("Ann keeps it."), "t.txt", lambda f: read_texts(f), "bytes"),
    "prompt": Kind(
        lambda f: (f / "p.txt").write_text("Who?\nWhat?"), "p.txt", lambda f: _prompts(f / "p.txt"), "bytes"
    ),
    "settings": Kind(_settings, "run.yaml", lambda f: load_settings(RouterTrainConfig, f / "run.yaml"), "yaml"),
    "training records": Kind(
        _lines("r.jsonl", RECORD, RECORD), "r.jsonl", lambda f: parse_records(read_rows(f / "r.jsonl"), f), "jsonl"
    ),
    "question files": Kind(_lines("e.jsonl", EVIDENCE), "e.jsonl", lambda f: read_evidence(f / "e.jsonl"), "jsonl"),
    "prompts": Kind(
        _lines("p.jsonl", {"prompt": "a"}, {"prompt": "b"}),
        "p.jsonl",
        lambda f: _prompts(f / "p.jsonl"),
        "jsonl",
    ),
    "SQuAD": Kind(_dump("s.json", SQUAD), "s.json", lambda f: read_questions(f / "s.json"), "json"),
    "HotpotQA": Kind(_dump("h.json", HOTPOT), "h.json", lambda f: read_questions(f / "h.json"), "json"),
    "LongBench": Kind(_lines("trec.jsonl", LONGBENCH), "trec.jsonl", _longbench("trec"), "jsonl"),
    "LongBench-E": Kind(
        _lines("passage_count_e.jsonl", LONGBENCH | {"answers": ["1"], "length": 5000}),
        "passage_count_e.jsonl",
        _longbench("passage_count", extended=True),
        "jsonl",
    ),
    "LongBench, code": Kind(_lines("lcc.jsonl", LONGBENCH, LONGBENCH), "lcc.jsonl", _longbench("lcc"), "jsonl"),
    "records to route": Kind(
        _lines("r.jsonl", RECORD, RECORD), "r.jsonl", lambda f: record_groups(f / "r.jsonl", 2, tokens=9), "jsonl"
    ),
    "journal of rewards": Kind(
        _lines("journal.jsonl", {"settings": {}}, {"key": "a", "value": ANSWERED}), "journal.jsonl", _compared, "jsonl"
    ),
    "ranking of heads": Kind(
        _dump("heads.json", {"needle_attention": [[0.5, 0.25], [0.0, 1.0]]}),
        "heads.json",
        lambda f: read_head_scores(str(f / "heads.json")),
        "json",
    ),
    "LongBench v2": Kind(
        _dump("data.json", [LONGBENCH2]),
        "data.json",
        lambda f: longbench_v2_group(f, forced=True, count=None, tokens=100),
        "json",
    ),
    "Long-RewardBench": Kind(_lines("Summ.jsonl", LONG, RANKED), "Summ.jsonl", long.read_folder, "jsonl"),
    "MemoryRewardBench": Kind(
        _lines("Long-context_Reasoning.jsonl", MEMORY),
        "Long-context_Reasoning.jsonl",
        memory.read_folder,
        "jsonl",
    ),
    "journal": Kind(
        _lines("journal.jsonl", {"settings": {"tokens": 5}}, {"key": "a", "value": [1, 2]}),
        "journal.jsonl",
        _journal,
        "jsonl",
    ),
}


def damage(kind: Kind, valid: bytes, rng: random.Random) -> bytes:
    """One damaged copy of the content of a file."""
    if kind.form == "bytes" or rng.random() < 0.3:
        return mutate_bytes(valid, rng)
    if kind.form == "json":
        return json.dumps(mutate_json(json.loads(valid), rng)).encode()
    if kind.form == "yaml":
        return yaml.safe_dump(mutate_json(yaml.safe_load(valid), rng)).encode()
    lines = valid.decode().splitlines()
    at = rng.randrange(len(lines))
    lines[at] = json.dumps(mutate_json(json.loads(lines[at]), rng), ensure_ascii=rng.random() < 0.5)
    return ("\n".join(lines) + "\n").encode("utf-8", "surrogatepass")


def fuzz(kind: Kind, folder: Path, cases: int) -> int:
    """Parses `cases` damaged files; returns how many were accepted all the same."""
    target = folder / "target"
    target.mkdir()
    kind.write(target)
    file = target / kind.damaged
    valid = file.read_bytes()
    names = sorted(path.name for path in target.iterdir())
    assert survives(lambda: kind.parse(target)), "the file is not valid to begin with"
    accepted = 0
    for case in range(cases):
        file.write_bytes(damage(kind, valid, random.Random(case)))
        try:
            accepted += survives(lambda: kind.parse(target))
        except BaseException as error:
            error.add_note(f"case {case} of {kind.damaged}")
            raise
        assert sorted(path.name for path in folder.iterdir()) == ["target"], f"case {case} wrote outside"
        assert sorted(path.name for path in target.iterdir()) == names, f"case {case} left files behind"
    return accepted


@pytest.mark.parametrize("text", ["{{ " + "(" * 100_000, "{% if 1 %}" * 20_000, "{{ 1" + "+1" * 50_000 + " }}"])
def test_templates_nested_deeper_than_the_stack(text: str, tmp_path: Path) -> None:
    (tmp_path / "chat_template.jinja").write_text(text)
    assert not survives(lambda: _render(tmp_path))


@pytest.mark.parametrize("name", KINDS)
def test_damaged_files_give_a_clear_error(name: str, tmp_path: Path) -> None:
    assert fuzz(KINDS[name], tmp_path, QUICK) < QUICK


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", KINDS)
def test_many_damaged_files_give_a_clear_error(name: str, tmp_path: Path) -> None:
    assert fuzz(KINDS[name], tmp_path, MANY) < MANY


@pytest.mark.parametrize("name", [name for name, kind in KINDS.items() if kind.form != "bytes"])
def test_text_nested_deeper_than_the_stack(name: str, tmp_path: Path) -> None:
    kind = KINDS[name]
    kind.write(tmp_path)
    (tmp_path / kind.damaged).write_text(deep_json())
    assert not survives(lambda: kind.parse(tmp_path))


def test_settings_that_repeat_themselves_a_billion_times(tmp_path: Path) -> None:
    laughs = ["a0: &a0 [lol]"] + [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 10)]
    (tmp_path / "run.yaml").write_text("\n".join(laughs))
    assert not survives(lambda: load_settings(RouterTrainConfig, tmp_path / "run.yaml"))
