"""Every flag of every training verb in runs of two steps that evaluate, save, go on and export.

A new setting must join one of the runs: the first test compares them with the fields of the settings.
"""

import dataclasses
import json
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from chat_tokenizers import chat_tokenizer
from checkpoints import same_bits
from programs import environment
from safetensors.numpy import load_file
from tiny import CONFIG, tiny_model, write_checkpoint

from elastic_jax import cli
from elastic_jax.heads import Heads
from elastic_jax.weights import save_pretrained
from train.config import RouterTrainConfig
from train.heads.settings import HeadsTrainConfig
from train.reward.config import BradleyTerryTrainConfig, SftConfig, SimpoTrainConfig

CLASSES = {
    "router": RouterTrainConfig,
    "heads": HeadsTrainConfig,
    "sft": SftConfig,
    "simpo": SimpoTrainConfig,
    "bt": BradleyTerryTrainConfig,
}
Flags = dict[str, str]
OPTIM = {
    **{"optim.steps": "2", "optim.rows": "2", "optim.accumulate": "2", "optim.learning_rate": "1e-2"},
    **{"optim.warmup": "0.1", "optim.beta1": "0.8", "optim.beta2": "0.9", "optim.eps": "1e-6"},
    **{"optim.weight_decay": "0.2", "optim.clip": "2"},
}
RUN = {
    **{"run.seed": "3", "run.save_every": "1", "run.keep": "2", "run.eval_every": "1", "run.nan_policy": "skip"},
    **{"run.nan_limit": "3", "run.date": "2024-07-26"},
}
ROUTER = {
    **{"model": "model", "dtype": "float32", "data.held_out": "0.25", "data.row_length": "256"},
    **{"router.block_size": "16", "router.local_blocks": "2", "router.sink_blocks": "1", "router.width": "2"},
    **{"router.pool_window": "20"},
    **OPTIM,
    **RUN,
}
TASKS = {
    f"tasks.{task}.{name}": value
    for task in ("single_qa", "multihop_qa", "summarization", "code", "icl")
    for name, value in {"count": "2", "target": "0.4 0.6", "loss_on": "all", "loss_weight": "0.5"}.items()
}
GATES = {
    **{"gates.schedule": "exponential", "gates.start": "1.4", "gates.end": "0.9", "gates.decay": "0.5"},
    **{"gates.draws": "2", "gates.initial_bias": "1", "gates.first_weights": "scaled", "gates.logit_penalty": "0.1"},
}
SPARSITY = {
    **{"sparsity.dual_learning_rate": "0.1", "sparsity.dual_max": "9", "sparsity.dual_start": "0.5"},
    **{"sparsity.penalty": "1"},
}
WARM_START = {
    **{"warm_start.rows": "2", "warm_start.key_rows": "2", "warm_start.levels": "0.5", "warm_start.steps": "3"},
    **{"warm_start.batch": "2", "warm_start.learning_rate": "1e-2"},
}
HEADS = {
    **{"model": "model", "dtype": "float32", "target_msr": "0.5", "least_answered": "0"},
    **{"sparse.block_size": "16", "sparse.local_blocks": "2", "sparse.sink_blocks": "1"},
    **{"data.folder": "texts", "data.exclude": "b*", "data.min_tokens": "1024"},
    **{"data.max_tokens": "1152", "data.lengths": "2", "data.questions": "2", "data.chat_share": "0.5"},
    **{"optim.steps": "2", "optim.rows": "2", "optim.learning_rate": "0.1", "optim.price": "0.01"},
    **{"optim.price_rate": "0.1", "optim.binary": "0.02", "optim.start": "0.8"},
    **{"settle.samples": "1", "settle.swaps": "1", "settle.msr": "0.5 0.75"},
    **RUN,
}
REWARD = {"model": "model", "dtype": "float32", "optim.final_share": "0.2", **OPTIM, **RUN}
LORA = {"lora.rank": "2", "lora.alpha": "4", "lora.targets": "attn.q_proj mlp.up_proj"}
GENERATED = {"data.generated": "6", "data.generated_held_out": "3", "data.generated_buildings": "2"}
PAIRS = {"data.records": "pairs.jsonl", "data.held_out": "held_out.jsonl", "data.prompt_tokens": "128"}
PAIRS |= {"data.response_tokens": "64", "data.rejects": "1"}
LONG_PAIRS = {"data.prompt_tokens": "1024", "data.response_tokens": "512", "data.rejects": "2"}
JUDGED = {"data.records": "judged.jsonl", "data.held_out": "judged.jsonl", "data.row_length": "256"}
DEVICES = {"mesh.slices": "1", "run.compile_cache": "cache", "run.profile": "0 1", "run.export": "hf"}
DEVICES |= {"distributed.coordinator": "127.0.0.1:PORT", "distributed.processes": "1", "distributed.process": "0"}
ROWS_AND_HEADS = {"mesh.data": "2", "mesh.tensor": "2", "mesh.fsdp": "1", "mesh.context": "1"}
WEIGHTS_AND_TOKENS = {"mesh.data": "1", "mesh.tensor": "1", "mesh.fsdp": "2", "mesh.context": "2"}

RUNS: dict[str, dict[str, Flags]] = {
    "router": {
        "records": {
            **{**ROUTER, **GATES, **SPARSITY, "data.records": "records.jsonl", "data.template": "mixed"},
            **{"data.weighting": "tokens", "data.max_segments": "3", "sparsity.loss": "interval"},
            **{"run.export": "router elastic hf"},
        },
        "folder": {
            **{**ROUTER, **TASKS, "data.folder": "texts", "data.exclude": "b*", "data.min_tokens": "340"},
            **{"data.max_tokens": "500", "data.evidence_share": "0.5", "data.packing": "first_fit"},
            **{"data.row_length": "1024", "data.template": "raw", "sparsity.loss": "official", "remat": "True"},
            **{"optim.lambda_learning_rate": "1e-2", "router.pooling": "prompt"},
        },
        "warm": {
            **{**ROUTER, **WARM_START, "data.records": "records.jsonl", "router.pattern": "fa-xa"},
            **{"router.xa_threshold": "0.8", "router.xa_stride": "8"},
        },
        "int8": {
            **{**ROUTER, "data.records": "records.jsonl", "weights": "int8", "init": "router", "router.width": "4"},
            **{"data.template": "chat"},
        },
        "calibrated": {
            **{**ROUTER, "data.records": "records.jsonl", "init_heads": "heads", "warm_start.key_rows": "2"},
            **{"warm_start.steps": "3", "router.width": "4", "loss.kind": "both", "loss.distil_weight": "0.5"},
        },
        "rows and heads": {**ROUTER, **DEVICES, **ROWS_AND_HEADS, "data.records": "records.jsonl"},
        "weights and tokens": {**ROUTER, **DEVICES, **WEIGHTS_AND_TOKENS, "data.records": "records.jsonl"},
    },
    "heads": {
        "whole": {**HEADS, "data.kinds": "needles pairs", "loss": "hidden", "remat": ""},
        "by task": {
            **{**HEADS, "data.kinds": "needles prose code", "per_task": "", "sparse.pattern": "fa-xa"},
            **{"sparse.xa_threshold": "0.8", "sparse.xa_stride": "8"},
        },
        "rows and heads": {**HEADS, **DEVICES, **ROWS_AND_HEADS, "run.export": "heads", "data.kinds": "needles"},
        "weights and tokens": {
            **{**HEADS, **DEVICES, **WEIGHTS_AND_TOKENS, "run.export": "heads", "data.kinds": "needles"},
        },
    },
    "sft": {
        "whole": {**REWARD, **JUDGED, "data.max_segments": "3", "block_size": "8", "run.export": "hf"},
        "adapters": {**REWARD, **JUDGED, **LORA, "routing": "routers", "router": "router", "remat": "False"},
        "generated": {**REWARD, **GENERATED, "data.row_length": "2048"},
        "rows and heads": {**REWARD, **JUDGED, **DEVICES, **ROWS_AND_HEADS},
        "weights and tokens": {**REWARD, **JUDGED, **DEVICES, **WEIGHTS_AND_TOKENS},
    },
    "simpo": {
        "whole": {
            **{**REWARD, **PAIRS, "layout": "shared", "loss.beta": "2", "loss.gamma": "0.3", "loss.nll_weight": "0.1"},
            **{"loss.label_smoothing": "0.1", "loss.rejects": "each", "block_size": "8", "run.export": "hf"},
        },
        "adapters": {
            **{**REWARD, **PAIRS, **LORA, "layout": "separate", "routing": "routers", "router": "router"},
            **{"remat": "False", "loss.form": "hinge"},
        },
        "generated": {**REWARD, **GENERATED, **LONG_PAIRS},
        "rows and heads": {**REWARD, **PAIRS, **DEVICES, **ROWS_AND_HEADS},
        "weights and tokens": {**REWARD, **PAIRS, **DEVICES, **WEIGHTS_AND_TOKENS, "layout": "separate"},
    },
    "bt": {
        "whole": {
            **{**REWARD, **PAIRS, "layout": "shared", "loss.use_margin": "", "loss.centring": "0.1"},
            **{"loss.rejects": "each", "block_size": "8", "run.export": "hf", "head": "new"},
        },
        "adapters": {
            **{**REWARD, **PAIRS, **LORA, "layout": "separate", "routing": "routers", "router": "router"},
            **{"remat": "False", "head": "given", "model": "reward_model"},
        },
        "generated": {**REWARD, **GENERATED, **LONG_PAIRS},
        "rows and heads": {**REWARD, **PAIRS, **DEVICES, **ROWS_AND_HEADS},
        "weights and tokens": {**REWARD, **PAIRS, **DEVICES, **WEIGHTS_AND_TOKENS, "layout": "separate"},
    },
}
EXPORTS = {"router": "router", "heads": "heads", "sft": "hf", "simpo": "hf", "bt": "hf"}
EXPORTS |= {"heads by task": "heads-retrieval heads-prose heads-code"}
"""What a run writes that is not told."""
FAST = {("router", "records"), ("bt", "whole")}
CASES = [
    pytest.param(verb, name, marks=() if (verb, name) in FAST else pytest.mark.slow, id=f"{verb} {name}")
    for verb, runs in RUNS.items()
    for name in runs
]


def leaves(settings, prefix: str = "") -> Iterator[str]:
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        if dataclasses.is_dataclass(value):
            yield from leaves(value, f"{prefix}{field.name}.")
        else:
            yield prefix + field.name


@pytest.mark.parametrize("verb", CLASSES)
def test_every_setting_is_in_one_of_the_runs(verb: str) -> None:
    given = {"run.directory"}.union(*RUNS[verb].values())
    assert set(leaves(CLASSES[verb]())) == given


@pytest.fixture(scope="module")
def here(tmp_path_factory) -> Path:
    """A folder with models, routers and data, in which the commands are given."""
    from dataclasses import replace

    import jax.numpy as jnp

    from elastic_jax.reward import ElasticRewardModel

    folder = tmp_path_factory.mktemp("flags")
    tokenizer = chat_tokenizer()
    write_checkpoint(folder / "model", tokenizer, max_position_embeddings=4096)
    model = tiny_model(1, vocab_size=len(tokenizer), max_position_embeddings=4096)
    save_pretrained(model, folder / "router", format="router")
    tied = tiny_model(2, vocab_size=len(tokenizer), max_position_embeddings=4096, tie_word_embeddings=True)
    head = jnp.ones((tied.config.hidden_size, 1))
    ElasticRewardModel(tied, head, replace(tied.config)).save_pretrained(folder / "reward_model")
    tokenizer.save_pretrained(folder / "reward_model")

    def write(name: str, rows: list[dict]) -> None:
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))

    tasks = ("Single QA", "MultiHop QA", "Summarization", "Code", "In-Context Learning")
    texts = [f"The number {i} stands on page {i + 9}." for i in range(10)]
    write(
        "records.jsonl",
        [
            {"context": text, "question": "which?", "answer": f"{i}", "metadata": {"task": tasks[i % 5]}}
            for i, text in enumerate(texts)
        ],
    )
    write("judged.jsonl", [{"prompt": text, "answer": f"page {i + 9}"} for i, text in enumerate(texts)])
    pairs = [{"prompt": text, "chosen": f"{i}", "rejected": "none", "margin": 1.5} for i, text in enumerate(texts)]
    write("pairs.jsonl", pairs[:7])
    write("held_out.jsonl", pairs[7:])
    (folder / "texts").mkdir()
    for name in ("aa", "ab", "ac", "ad", "b"):
        (folder / "texts" / f"{name}.txt").write_text(" ".join(texts) * 20)
    question = {"input": "which?", "context": " ".join(texts), "answers": ["page 9"], "id": "q"}
    Heads(np.arange(4).reshape(2, 2), CONFIG.router).save(folder / "heads")
    write("texts/questions.jsonl", [question | {"id": f"q{i}"} for i in range(6)])
    return folder


@pytest.mark.parametrize(("verb", "name"), CASES)
def test_two_steps_with_evaluation_going_on_and_export(verb: str, name: str, here: Path, monkeypatch) -> None:
    monkeypatch.chdir(here)
    flags = RUNS[verb][name]
    run = here / f"{verb} {name}"
    assert command(verb, flags, run) == 0
    before = exported(run)
    assert before.keys() == set(flags.get("run.export", EXPORTS.get(f"{verb} {name}", EXPORTS[verb])).split())
    assert [line["step"] for line in lines(run / "evaluation.jsonl")] == [1, 2]
    curve = [line["loss"] for line in lines(run / "metrics.jsonl")]
    shutil.rmtree(run / "checkpoints" / "2")  # as if killed between its two checkpoints
    for form in before:
        shutil.rmtree(run / form)
    assert command(verb, flags, run) == 0
    assert [line["loss"] for line in lines(run / "metrics.jsonl")] == curve and len(curve) == 2
    again = exported(run)
    assert all(same_bits(again[form], before[form]) for form in before)


def command(verb: str, flags: Flags, run: Path) -> int:
    """Gives the command; on simulated devices in a process of its own."""
    given = {**flags, "run.directory": str(run)}
    arguments = ["train", verb]
    for name, value in given.items():
        arguments += [f"--{name}", *([value] if name == "run.directory" else value.split())]
    if "distributed.coordinator" not in flags:
        return cli.main(arguments)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    arguments = [argument.replace("PORT", port) for argument in arguments]
    program = [sys.executable, "-m", "elastic_jax.cli", *arguments]
    done = subprocess.run(program, capture_output=True, text=True, env=environment(devices=4))
    assert done.returncode == 0, done.stderr[-3000:]
    return done.returncode


def lines(file: Path) -> list[dict]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def exported(run: Path) -> dict[str, dict]:
    """Every tensor of every exported form."""
    names = (*EXPORTS["heads by task"].split(), "heads", "router", "elastic", "hf")
    forms = [form for form in names if (run / form).is_dir()]
    return {
        form: {k: v for file in (run / form).glob("*.safetensors") for k, v in load_file(file).items()}
        for form in forms
    }
