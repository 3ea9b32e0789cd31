"""The verbs: help texts, dry runs, and settings that are refused with one clear line."""

from pathlib import Path

import jax
import pytest
from checkpoints import GOLDEN
from jax.sharding import NamedSharding
from overridden import overridden

from elastic_jax.errors import ConfigError
from elastic_jax.settings import load_settings
from elastic_jax.sharding import MeshConfig, make_mesh
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
        (BradleyTerryTrainConfig, "data.rejects=0", "rejects"),
        (BradleyTerryTrainConfig, "optim.warmup=1", "warmup is 1"),
        (BradleyTerryTrainConfig, "optim.clip=0", "clip 0.*want more than 0"),
        (BradleyTerryTrainConfig, "lora.targets=[attn.query]", "one of attn.k_proj"),
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
    settings = ["--run.directory", str(tmp_path / "run"), "--distributed.coordinator", "auto"]
    assert reward.bt(["--model", str(GOLDEN / "llama3"), *settings, "--dry-run"]) == 0
    assert capsys.readouterr().out == "12 pairs\n"


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
