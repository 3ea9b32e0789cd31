import logging
from pathlib import Path

import numpy as np
import pytest
from heads_run import MODEL, RandomSamples, main, tiny_heads_config
from tiny import CONFIG, tiny_model

import train.heads.run as run
from elastic_jax.errors import ConfigError, DataError
from elastic_jax.heads import Heads, load_heads
from elastic_jax.weights.heads import heads_fingerprint
from train.heads.run import calibrate_heads
from train.heads.settings import HeadsDataConfig
from train.loop.trouble import Interrupted


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("heads") / "run"
    assert main(str(directory)) == 0
    return directory


def test_the_record_has_order_gates_curve_and_the_model_that_it_is_of(finished):
    heads = load_heads(finished / "heads")
    assert heads.order.shape == (3, 2) and heads.gates is not None and heads.gates.shape == (3, 2)
    assert heads.weights == heads_fingerprint(tiny_model(**MODEL))
    assert heads.geometry == Heads(heads.order, CONFIG.router).geometry and heads.msr == 0.5
    assert [point.full_heads for point in heads.curve] == [1, 3]
    assert all(point.kl >= 0 for point in heads.curve)
    assert heads.settings["optim"]["steps"] == 10 and "folder" not in str(heads.settings)


def test_pictures_lie_beside_it(finished):
    assert (finished / "heads/gates.png").stat().st_size > 1000
    assert (finished / "heads/curve.png").stat().st_size > 1000


def test_a_stopped_run_ends_with_the_same_record(finished, tmp_path, monkeypatch):
    steps = []
    real = run.make_step

    def stopping(*arguments):
        step = real(*arguments)

        def counted(*inputs):
            steps.append(1)
            if len(steps) == 5:
                import os
                import signal

                os.kill(os.getpid(), signal.SIGTERM)
            return step(*inputs)

        return counted

    monkeypatch.setattr(run, "make_step", stopping)
    with pytest.raises(Interrupted):
        main(str(tmp_path / "run"))
    main(str(tmp_path / "run"))
    want, got = load_heads(finished / "heads"), load_heads(tmp_path / "run/heads")
    assert np.array_equal(want.gates, got.gates) and np.array_equal(want.order, got.order)
    assert want.curve == got.curve


def test_a_finished_run_can_be_given_again(finished):
    before = load_heads(finished / "heads")
    assert main(str(finished)) == 0
    assert np.array_equal(before.order, load_heads(finished / "heads").order)


def test_other_texts_do_not_go_on_with_a_run(finished):
    with pytest.raises(DataError, match="texts"):
        calibrate_heads(tiny_heads_config(), tiny_model(**MODEL), RandomSamples(1), finished)


def test_a_model_that_predicts_nothing_is_refused_before_training(tmp_path):
    with pytest.raises(DataError, match="full attention the model predicts"):
        calibrate_heads(tiny_heads_config(least_answered=0.9), tiny_model(**MODEL), RandomSamples(), tmp_path / "run")
    assert not (tmp_path / "run/checkpoints").exists()


def test_samples_beyond_the_models_positions_are_refused(tmp_path):
    config = tiny_heads_config(data=HeadsDataConfig(min_tokens=256, max_tokens=640))
    with pytest.raises(ConfigError, match="max_tokens is 640"):
        calibrate_heads(config, tiny_model(**MODEL), RandomSamples(), tmp_path / "run")


def test_gates_that_never_separate_are_named(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(run, "_MOST_BETWEEN", -1.0)
    with caplog.at_level(logging.WARNING):
        main(str(tmp_path / "run"))
    assert "ended between 0.1 and 0.9" in caplog.text and "optim.steps" in caplog.text


def test_several_processes_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(run.jax, "process_count", lambda: 2)
    with pytest.raises(ConfigError, match="2 processes"):
        main(str(tmp_path / "run"))
