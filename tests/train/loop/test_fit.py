import json
import resource
import signal
import subprocess
import sys
import time
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import train_run
from programs import environment
from tiny import tiny_model
from train_run import STEPS, tiny_config, tiny_samples

from elastic_jax.errors import CheckpointError, ConfigError, DataError
from elastic_jax.weights import from_pretrained
from train.config import OptimConfig, RunConfig, SparsityConfig
from train.loop.reporting import MetricLog
from train.router.run import train_router

SAME = ("loss", "lm_loss", "sparsity_loss", "grad_norm", "msr", "nll", "multiplier_below")


def lines(directory: Path) -> list[dict]:
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]


def curve(directory: Path) -> list[tuple]:
    return [(line["step"], *(line[name] for name in SAME)) for line in lines(directory)]


def router_bytes(directory: Path) -> bytes:
    return next((directory / "router").glob("*.safetensors")).read_bytes()


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    directory = tmp_path_factory.mktemp("finished") / "run"
    assert train_run.main(str(directory)) == 0
    return directory


def test_a_run_leaves_settings_metrics_events_checkpoints_and_the_router(finished):
    assert [line["step"] for line in lines(finished)] == list(range(STEPS))
    assert (finished / "settings.yaml").is_file()
    assert list((finished / "tensorboard").iterdir())
    assert sorted(path.name for path in (finished / "checkpoints").iterdir()) == ["18", "20"]
    assert sorted(path.name for path in (finished / "router").iterdir()) == ["router.safetensors", "router_config.json"]


def test_a_finished_run_started_again_changes_nothing(finished):
    before = curve(finished), router_bytes(finished)
    assert train_run.main(str(finished)) == 0
    assert (curve(finished), router_bytes(finished)) == before


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_a_killed_run_goes_on_to_the_last_bit(finished, tmp_path, how):
    directory = tmp_path / "run"
    command = [sys.executable, train_run.__file__, str(directory)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment())
    metrics = directory / "metrics.jsonl"
    after = int(np.random.default_rng().integers(1, STEPS // 2))
    while process.poll() is None and not (metrics.is_file() and metrics.read_text().count("\n") >= after):
        time.sleep(0.005)
    process.send_signal(how)
    message = process.communicate(timeout=300)[1]
    if how == signal.SIGKILL:
        assert process.returncode == -how
    else:
        assert process.returncode == 128 + how, message
        assert f"stopped by {how.name} after step" in message and "to go on" in message
        done = len(lines(directory))
        assert (directory / "checkpoints" / str(done)).is_dir() and done < STEPS
    assert train_run.main(str(directory)) == 0
    assert curve(directory) == curve(finished)
    assert router_bytes(directory) == router_bytes(finished)


def test_changed_settings_are_refused_by_name(finished):
    changed = tiny_config(optim=replace(tiny_config().optim, learning_rate=0.5))
    with pytest.raises(ConfigError, match="optim.learning_rate: was 0.01, now 0.5"):
        train_router(changed, tiny_model(), tiny_samples(), finished)


def test_changed_data_are_refused(finished):
    with pytest.raises(DataError, match="training data changed"):
        train_router(tiny_config(), tiny_model(), tiny_samples(13), finished)


def test_a_directory_with_something_else_is_refused(tmp_path):
    (tmp_path / "thesis.txt").write_text("precious")
    with pytest.raises(CheckpointError, match="not empty and holds no run"):
        train_router(tiny_config(), tiny_model(), tiny_samples(), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_metric_lines_after_the_checkpoint_and_cut_ones_are_dropped(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 0}\n{"step": 1}\n{"step": 2}\n{"st')
    log = MetricLog(tmp_path, 2, evaluated=False, labels={})
    log.write(2, {"loss": 1.5})
    log.close()
    assert lines(tmp_path) == [{"step": 0}, {"step": 1}, {"step": 2, "loss": 1.5}]


def test_a_full_disk_names_the_file_of_the_figures(tmp_path, monkeypatch):
    monkeypatch.setattr("tensorboardX.SummaryWriter", lambda *_, **__: SimpleNamespace(close=lambda: None))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    log = MetricLog(tmp_path, 0, evaluated=False, labels={})
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (9, hard))
        with pytest.raises(OSError) as caught, closing(log):
            log.write(0, {"loss": 1.5})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert caught.value.filename == str(tmp_path / "metrics.jsonl")


def test_the_official_multipliers_travel_in_the_elastic_checkpoint(tmp_path):
    config = tiny_config(
        sparsity=SparsityConfig(loss="official"),
        optim=OptimConfig(steps=1),
        run=RunConfig(export=("elastic",)),
    )
    train_router(config, tiny_model(), tiny_samples(), tmp_path / "run")
    extras = from_pretrained(tmp_path / "run" / "elastic", dtype="auto").extras
    last = lines(tmp_path / "run")[-1]
    for number, name in ((1, "linear"), (2, "quadratic")):
        written = extras[f"model.sparsity_lambda{number}_task"]
        np.testing.assert_allclose(written, last[f"multiplier_{name}"], atol=2e-3)
        assert (written > 0).all()
