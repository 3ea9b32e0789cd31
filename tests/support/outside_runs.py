"""Files of this program that a later start reads, and replies of endpoints."""

from __future__ import annotations

import functools
import json
import shutil
import tempfile
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import toy_job
import yaml
from chat_tokenizers import chat_tokenizer
from outside_kind import Kind, dump, lines
from outside_models import TEMPLATE
from transformers import PreTrainedTokenizerFast

from elastic_jax.cli.generate import GenerateSettings
from elastic_jax.errors import DataError
from elastic_jax.journal import Journal, LineFile
from elastic_jax.journal import read_records as read_journals
from elastic_jax.settings import load_settings, settings_dict, settings_yaml
from eval.compare import compare_runs
from eval.harness.backends.endpoint import EndpointBackend, EndpointConfig
from eval.harness.records import check_record
from eval.harness.routing import read_head_scores
from eval.samples import ENDPOINT_ARM, Message, Prompt, Sample
from train.config import RouterTrainConfig
from train.loop.checkpoint import Checkpoints
from train.loop.directory import claim, dated
from train.loop.fit import CHECKPOINT_FOLDER, fit
from train.loop.reporting import METRICS_FILE, MetricLog
from train.reward.config import BradleyTerryTrainConfig

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


def _settings(folder: Path) -> None:
    (folder / "run.yaml").write_text(yaml.safe_dump(json.loads(json.dumps(settings_dict(RouterTrainConfig())))))


def _journal(folder: Path) -> None:
    read_journals(folder)
    Journal(folder / "journal.jsonl", {"tokens": 5}).close()


def _compared(folder: Path) -> None:
    _, values = read_journals(folder)
    for key, value in values.items():
        check_record(key, value)
    compare_runs(folder, folder, None, None)


COMPLETION = {
    "choices": [{"message": {"content": "Ann", "reasoning_content": None}, "finish_reason": "length"}],
    "usage": {"completion_tokens": 2},
}


def _run(folder: Path) -> None:
    """A run directory of a toy, with checkpoints, metrics and settings with a date."""
    config = dated(TOY, _dating_tokenizer(), folder)
    with claim(folder, config):
        fit(toy_job.toy_job(config), folder)
    (folder / "run").mkdir()
    for entry in [entry for entry in folder.iterdir() if entry.name != "run"]:
        entry.rename(folder / "run" / entry.name)


def _claimed(folder: Path) -> None:
    with claim(folder / "run", dated(TOY, _dating_tokenizer(), folder / "run")):
        pass


def _dating_tokenizer() -> PreTrainedTokenizerFast:
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=chat_tokenizer().backend_tokenizer)
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def _restored(folder: Path) -> None:
    checkpoints = Checkpoints(folder / "run" / CHECKPOINT_FOLDER, keep=2)
    try:
        checkpoints.restore(toy_job.toy_job(TOY).state)
        checkpoints.settings()
    finally:
        checkpoints.close()


def _reopened_metrics(folder: Path) -> None:
    with tempfile.TemporaryDirectory() as copy:
        shutil.copyfile(folder / "run" / METRICS_FILE, Path(copy) / METRICS_FILE)
        MetricLog(Path(copy), 3, evaluated=False, labels={}).close()


def _unfinished(folder: Path) -> None:
    LineFile(folder / "made.jsonl", {"seed": 1}).close()


class _Endpoint(BaseHTTPRequestHandler):
    """Answers every request with the content of a file."""

    answer: Path

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.end_headers()
        self.wfile.write(self.answer.read_bytes())

    def log_message(self, *_: object) -> None:
        pass


@functools.cache
def _endpoint() -> EndpointBackend:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Endpoint)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return EndpointBackend(EndpointConfig(f"http://127.0.0.1:{server.server_port}/v1", "judge", retries=0))


def _asked(folder: Path) -> None:
    _Endpoint.answer = folder / "answer.json"
    prompt = Prompt(Sample("a", {}, max_new_tokens=7), [1], max_new_tokens=7, messages=(Message.of("user", "Who?"),))
    [(_, reply)] = _endpoint().run("generate", [prompt], ENDPOINT_ARM, batch_tokens=1, most_rows=1)
    if reply.error:
        raise DataError(reply.error)
    assert isinstance(reply.text, str) and isinstance(reply.new_tokens, int)


TOY = toy_job.ToyConfig(optim=toy_job.ToyOptim(steps=4))


RUNS = {
    "settings of generate": Kind(
        lambda f: (f / "run.yaml").write_text(settings_yaml(GenerateSettings(model="m", prompt="Who?"))),
        "run.yaml",
        lambda f: load_settings(GenerateSettings, f / "run.yaml"),
        "yaml",
    ),
    "settings of reward training": Kind(
        lambda f: (f / "run.yaml").write_text(settings_yaml(BradleyTerryTrainConfig())),
        "run.yaml",
        lambda f: load_settings(BradleyTerryTrainConfig, f / "run.yaml"),
        "yaml",
    ),
    "run directory, settings": Kind(_run, "run/settings.yaml", _claimed, "yaml"),
    "run directory, metrics": Kind(_run, f"run/{METRICS_FILE}", _reopened_metrics, "jsonl", tolerant=True),
    "run directory, checkpoint": Kind(
        _run, f"run/{CHECKPOINT_FOLDER}/4/_CHECKPOINT_METADATA", _restored, "json", most=200
    ),
    "run directory, arrays": Kind(_run, f"run/{CHECKPOINT_FOLDER}/4/state/_METADATA", _restored, "json", most=200),
    "unfinished synthesis": Kind(
        lines("made.jsonl.part", {"settings": {"seed": 1}}, {"id": "1", "line": {"a": 1}, "reason": None}),
        "made.jsonl.part",
        _unfinished,
        "jsonl",
        tolerant=True,
    ),
    "reply of an endpoint": Kind(dump("answer.json", COMPLETION), "answer.json", _asked, "json"),
    "settings": Kind(_settings, "run.yaml", lambda f: load_settings(RouterTrainConfig, f / "run.yaml"), "yaml"),
    "journal of rewards": Kind(
        lines("journal.jsonl", {"settings": {}}, {"key": "a", "value": ANSWERED}), "journal.jsonl", _compared, "jsonl"
    ),
    "ranking of heads": Kind(
        dump("heads.json", {"needle_attention": [[0.5, 0.25], [0.0, 1.0]]}),
        "heads.json",
        lambda f: read_head_scores(str(f / "heads.json")),
        "json",
    ),
    "journal": Kind(
        lines("journal.jsonl", {"settings": {"tokens": 5}}, {"key": "a", "value": [1, 2]}),
        "journal.jsonl",
        _journal,
        "jsonl",
    ),
}
