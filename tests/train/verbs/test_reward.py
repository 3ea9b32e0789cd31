"""The verbs: help texts, dry runs, and settings that are refused with one clear line."""

import json
import re
from pathlib import Path

import jax
import pytest
from chat_tokenizers import CHATML, chat_tokenizer
from checkpoints import GOLDEN
from jax.sharding import NamedSharding
from overridden import overridden
from tiny import tiny_model

from elastic_jax import cli
from elastic_jax.errors import ConfigError
from elastic_jax.settings import load_settings
from elastic_jax.sharding import MeshConfig, make_mesh
from elastic_jax.weights import save_pretrained
from train.reward.config import BradleyTerryTrainConfig, SftConfig, SimpoTrainConfig
from train.reward.dataset import Data
from train.verbs import reward

CLASSES = {"sft": SftConfig, "simpo": SimpoTrainConfig, "bt": BradleyTerryTrainConfig}


@pytest.mark.parametrize("verb", CLASSES)
def test_every_setting_has_a_help_text(verb: str, capsys) -> None:
    with pytest.raises(SystemExit) as stopped:
        getattr(reward, verb)(["--help"])
    assert stopped.value.code == 0
    text = capsys.readouterr().out
    assert "--lora.rank" in text and "trains every weight" in text and "--optim.accumulate" in text


def test_a_model_and_a_directory_are_asked_for() -> None:
    with pytest.raises(ConfigError, match="--model SOURCE"):
        reward.bt([])
    with pytest.raises(ConfigError, match="--run.directory"):
        reward.simpo(["--model", "smollm2"])


@pytest.mark.parametrize(
    ("cls", "override", "message"),
    [
        (SftConfig, "lora.rank=-1", "rank -1"),
        (SftConfig, "data.records=a.jsonl", "held_out go together"),
        (SimpoTrainConfig, "loss.beta=0", "beta 0"),
        (SimpoTrainConfig, "loss.label_smoothing=0.5", "label_smoothing"),
        (BradleyTerryTrainConfig, "loss.centring=-1", "centring is -1"),
        (BradleyTerryTrainConfig, "data.rejects=0", "rejects is 0; want at least 1"),
        (BradleyTerryTrainConfig, "optim.warmup=1", "warmup is 1"),
        (BradleyTerryTrainConfig, "optim.clip=0", "clip 0.*want more than 0"),
        (BradleyTerryTrainConfig, "lora.targets=[attn.query]", "one of attn.q_proj"),
    ],
)
def test_settings_out_of_range_are_refused(cls, override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        overridden(cls, None, [override])


def test_label_smoothing_is_for_the_sigmoid_alone() -> None:
    with pytest.raises(ConfigError, match=r"label_smoothing is 0.1; form hinge has none"):
        overridden(SimpoTrainConfig, None, ["loss.form=hinge", "loss.label_smoothing=0.1"])


def test_a_dry_run_joins_no_cluster(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setattr("train.loop.distributed.start", lambda *_: pytest.fail("joined"))
    monkeypatch.setattr("elastic_jax.weights.tokenizer.load_tokenizer", lambda source: None)
    monkeypatch.setattr("train.reward.dataset.load_pairs", lambda config, tokenizer: Data([], [], "12 pairs"))
    lengths = ["--data.prompt_tokens", "128", "--data.response_tokens", "64"]
    settings = ["--run.directory", str(tmp_path / "run"), "--distributed.coordinator", "auto", *lengths]
    assert reward.bt(["--model", str(GOLDEN / "llama3"), *settings, "--dry-run"]) == 0
    assert capsys.readouterr().out == "12 pairs\n"


REFUSED = """{{ raise_exception('no numbers') if '7' in messages[0].content }}{% for m in messages %}{{ m.content }}
{% endfor %}"""
COMMANDS = {
    "router": ("--data.records", "records.jsonl", "--data.row_length", "256", "--data.template", "chat"),
    "sft": ("--data.records", "judged.jsonl", "--data.held_out", "judged.jsonl", "--data.row_length", "256"),
    "bt": (
        *("--data.records", "pairs.jsonl", "--data.held_out", "pairs.jsonl", "--data.prompt_tokens", "128"),
        *("--data.response_tokens", "64"),
    ),
}


@pytest.fixture(scope="module")
def here(tmp_path_factory) -> Path:
    """Data, and models with one fault each."""
    folder = tmp_path_factory.mktemp("refused")
    text = "The number {} stands on page 9. " * 3
    rows = {
        "records": {"context": text, "question": "which?", "answer": "{}", "metadata": {"task": "Single QA"}},
        "judged": {"prompt": text, "answer": "page 9"},
        "pairs": {"prompt": text, "chosen": "{}", "rejected": "none"},
    }
    for name, row in rows.items():
        lines = [json.dumps(row).replace("{}", str(number)) for number in (5, 6, 7)]
        (folder / f"{name}.jsonl").write_text("\n".join(lines))
    for name, template, changes in (
        ("few tokens", CHATML, {"vocab_size": 600}),
        ("few positions", CHATML, {"max_position_embeddings": 64}),
        ("refusing", REFUSED, {}),
    ):
        tokenizer = chat_tokenizer(template) if template == CHATML else clone(chat_tokenizer(), template)
        model = tiny_model(**{"vocab_size": len(tokenizer), **changes})
        save_pretrained(model, folder / name, format="elastic")
        tokenizer.save_pretrained(folder / name)
    return folder


def clone(tokenizer, template: str):
    return type(tokenizer)(tokenizer_object=tokenizer.backend_tokenizer, chat_template=template)


@pytest.mark.parametrize("dry", [(), ("--dry-run",)], ids=["run", "dry run"])
@pytest.mark.parametrize("verb", COMMANDS)
@pytest.mark.parametrize(
    ("model", "complaint"),
    [
        ("few tokens", r"sample 0: token ids run from \d+ to 64\d; want ids in \[0, 600\)"),
        ("few positions", r"tokens; the model has 64 positions"),
        ("refusing", r"(records|judged|pairs).jsonl:3: .*no numbers"),
    ],
)
def test_what_the_model_cannot_read_is_refused(verb, model, complaint, dry, here, monkeypatch, capsys) -> None:
    """As `generate` refuses it, before anything is trained; a template's refusal names the record."""
    monkeypatch.chdir(here)
    blocks = ("--router.block_size", "16") if verb == "router" else ()
    flags = ("--model", model, "--dtype", "float32", *COMMANDS[verb], *blocks, "--run.directory", f"{verb} {model}")
    assert cli.main(["train", verb, *flags, *dry]) == 2
    said = capsys.readouterr().err.strip()
    assert re.search(complaint, said.splitlines()[-1]), said
    assert not (here / f"{verb} {model}").exists()


def test_blocks_of_routed_heads_cannot_be_changed(tmp_path: Path) -> None:
    file = tmp_path / "settings.yaml"
    file.write_text("routing: routers\nblock_size: 16\n")
    with pytest.raises(ConfigError, match="blocks of their own model"):
        load_settings(SimpoTrainConfig, file)


def test_recipes_of_the_paper_hold_its_values() -> None:
    simpo = load_settings(SimpoTrainConfig, "simpo_longrm_8b")
    assert (simpo.loss.beta, simpo.loss.gamma, simpo.loss.nll_weight, simpo.data.rejects) == (2.5, 0.5, 0.05, 2)
    for cls, name in ((SftConfig, "sft_longrm_8b"), (SimpoTrainConfig, "simpo_longrm_8b")):
        optim = load_settings(cls, name).optim
        assert (optim.rows * optim.accumulate, optim.learning_rate, optim.warmup) == (32, 2e-6, 0.03)
        assert (optim.beta1, optim.beta2, optim.clip, optim.final_share) == (0.9, 0.95, 1.0, 0.1)
    lora = load_settings(BradleyTerryTrainConfig, "bt_longrm_8b").lora
    assert (lora.rank, lora.scale) == (8, 1.0)


@pytest.mark.parametrize("verb", CLASSES)
def test_every_kind_of_model_is_read_onto_the_mesh_of_the_run(verb: str) -> None:
    model = reward._model(CLASSES[verb](), GOLDEN / "llama3", make_mesh(MeshConfig(), jax.devices()[:1]))
    decoder = getattr(model, "decoder", model)
    assert isinstance(decoder.embed.embedding[...].sharding, NamedSharding)
