"""Router training over an int8 backbone: it trains, measures, exports and goes on; what cannot be is refused."""

import json
import shutil
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file
from tiny import tiny_model
from train_run import tiny_config, tiny_samples

from elastic_jax.errors import ConfigError
from elastic_jax.int8_linear import int8_maps, quantize_layers
from elastic_jax.layers import INPUT_RANKS
from elastic_jax.model import to_params
from train.config import DataConfig, OptimConfig, RunConfig, WarmStartConfig
from train.router.run import train_router
from train.router.warm_loop import MEASURED_FILE

CONFIG = tiny_config(
    weights="int8",
    data=DataConfig(row_length=128, max_segments=3, held_out=0.2),
    optim=OptimConfig(steps=3, learning_rate=1e-2, warmup=0.0),
    warm_start=WarmStartConfig(rows=(1,), steps=4),
    run=RunConfig(save_every=1, eval_every=3),
)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The run directory, and the model that was handed over."""
    directory, model = tmp_path_factory.mktemp("int8") / "run", tiny_model()
    train_router(CONFIG, model, tiny_samples(), directory)
    return directory, model


def test_a_run_trains_evaluates_and_exports_its_routers(trained):
    directory, model = trained
    assert (directory / MEASURED_FILE).is_file(), "a new run begins with the warm start"
    lines = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [0, 1, 2] and np.isfinite([line["loss"] for line in lines]).all()
    assert json.loads((directory / "evaluation.jsonl").read_text())["step"] == 3
    fresh = tiny_model()
    assert int8_maps(to_params(model)) == list(INPUT_RANKS)
    quantize_layers(fresh)
    for path, x in to_params(fresh).items():
        assert jnp.array_equal(to_params(model)[path], x), f"{path} moved"
    written = load_file(directory / "router" / "router.safetensors")
    assert all("mask_allocator" in name and np.isfinite(x).all() for name, x in written.items())


def test_a_stopped_run_goes_on(trained, tmp_path):
    directory = tmp_path / "run"
    shutil.copytree(trained[0], directory)
    shutil.rmtree(directory / "checkpoints" / "3")
    shutil.rmtree(directory / "router")
    (directory / MEASURED_FILE).unlink()
    train_router(CONFIG, tiny_model(), tiny_samples(), directory)
    assert not (directory / MEASURED_FILE).exists(), "a run with a checkpoint measures no warm start"
    want, got = (load_file(run / "router" / "router.safetensors") for run in (trained[0], directory))
    jax.tree.map(np.testing.assert_array_equal, got, want)
    with pytest.raises(ConfigError, match="weights: was 'int8', now 'model'"):
        train_router(replace(CONFIG, weights="model"), tiny_model(), tiny_samples(), directory)


def test_an_int8_model_is_not_trained_as_another(trained, tmp_path):
    with pytest.raises(ConfigError, match="int8 already. Load the model anew"):
        train_router(replace(CONFIG, weights="model"), trained[1], tiny_samples(), tmp_path / "run")
    assert not (tmp_path / "run").exists()
