"""The loop on a toy job: bad numbers, evaluation, full disks, meshes, several processes."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
import toy_job
from chat_tokenizers import CHATML, chat_tokenizer
from programs import environment
from safetensors.numpy import load_file
from toy_job import ToyConfig, ToyOptim

from elastic_jax.errors import CheckpointError, ConfigError, DataError
from elastic_jax.text.chat import chat_text
from train.loop.directory import claim, dated
from train.loop.fit import NothingLearnt, TrainingDiverged, best_state, fit
from train.loop.inputs import weights_digest
from train.loop.trouble import Interrupted

STEPS = ToyOptim().steps


def lines(directory: Path, name: str = "metrics.jsonl") -> list[dict]:
    return [json.loads(line) for line in (directory / name).read_text().splitlines()]


def losses(directory: Path) -> list[float]:
    return [line["loss"] for line in lines(directory)]


def saved_steps(directory: Path) -> list[int]:
    return sorted(int(path.name) for path in (directory / "checkpoints").iterdir() if path.name.isdigit())


def with_run(**changes) -> ToyConfig:
    return ToyConfig(run=replace(ToyConfig().run, **changes))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run without any trouble: its directory and last state."""
    directory = tmp_path_factory.mktemp("whole") / "run"
    return directory, fit(toy_job.toy_job(ToyConfig()), directory)


def test_skip_goes_on_as_if_the_bad_batch_had_not_been_there(tmp_path, whole):
    config = replace(with_run(nan_policy="skip"), poison=(2,))
    state = fit(toy_job.toy_job(config), tmp_path / "run")
    told = lines(tmp_path / "run")
    assert [line["skipped"] for line in told] == [0, 0, 1, 0, 0, 0, 0, 0]
    assert told[2]["loss"] is None and int(state["count"]) == STEPS - 1
    wanted = toy_job.toy_job(ToyConfig()).state
    for number in (0, 1, 3, 4, 5, 6, 7):
        batches = toy_job.Batches(ToyConfig())
        batches.set_state({"number": number})
        wanted, _ = toy_job.step(wanted, {"goal": 1.0}, next(batches))
    np.testing.assert_allclose(state["w"], wanted["w"], rtol=1e-6)
    batch = load_file(tmp_path / "run" / "nonfinite" / "step_000002.safetensors")
    assert np.isinf(batch["x"]).any() and (batch["number"] == 2).all()
    figures = json.loads((tmp_path / "run" / "nonfinite" / "step_000002.json").read_text())
    assert "loss" in figures["not finite"]


def test_skip_gives_up_after_the_limit_even_over_a_restart(tmp_path):
    config = replace(with_run(nan_policy="skip", nan_limit=1, save_every=1), poison=(1, 5))
    stopped = replace(config, optim=ToyOptim(steps=8))
    with pytest.raises(TrainingDiverged, match=r"at step 5 \(2 such steps\)"):
        fit(toy_job.toy_job(stopped), tmp_path / "run")
    assert saved_steps(tmp_path / "run")[-1] == 5
    with pytest.raises(TrainingDiverged, match=r"at step 5 \(2 such steps\)"):
        fit(toy_job.toy_job(stopped), tmp_path / "run")


def test_a_run_of_which_every_step_was_left_out_fails_with_a_code_of_its_own(tmp_path):
    config = replace(with_run(nan_policy="skip"), poison=tuple(range(STEPS)))
    for _ in range(2):  # started again at its end, it says so again
        with pytest.raises(NothingLearnt, match=f"all {STEPS} steps were not finite") as failed:
            fit(toy_job.toy_job(config), tmp_path / "run")
        assert failed.value.exit_code == 4


DAMAGES = {
    "no file": (lambda folder: [shutil.rmtree(folder), folder.mkdir()], "_CHECKPOINT_METADATA is missing"),
    "no description": (lambda folder: [f.unlink() for f in folder.rglob("*METADATA")], "METADATA is missing"),
    "no shapes": (lambda folder: (folder / "state" / "_METADATA").unlink(), "state/_METADATA is missing"),
    "halves": (
        lambda folder: [
            f.write_bytes(f.read_bytes()[: f.stat().st_size // 2]) for f in folder.rglob("*") if f.is_file()
        ],
        "not readable JSON",
    ),
    "no arrays": (lambda folder: [shutil.rmtree(f) for f in folder.rglob("d")], "cannot be restored, as it is damaged"),
}


@pytest.mark.parametrize(("damage", "complaint"), DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_newest_checkpoint_is_named_and_the_one_before_is_offered(tmp_path, whole, damage, complaint):
    run = Path(shutil.copytree(whole[0], tmp_path / "run"))
    damage(run / "checkpoints" / "8")
    with pytest.raises(CheckpointError, match=f"checkpoints/8: the checkpoint.*{complaint}") as refused:
        fit(toy_job.toy_job(ToyConfig()), run)
    assert str(refused.value).count("\n") == 0
    assert "Remove that folder, and the same command goes on from step 6," in str(refused.value)
    shutil.rmtree(run / "checkpoints" / "8")
    fit(toy_job.toy_job(ToyConfig()), run)
    assert losses(run) == losses(whole[0])


@pytest.mark.parametrize(
    ("before", "now"), [({"held-out data": "a"}, {"held-out data": "b"}), ({"held-out data": "a"}, {})]
)
def test_changed_inputs_are_refused_by_name(tmp_path, before, now):
    fit(toy_job.toy_job(ToyConfig(), inputs=before), tmp_path / "run")
    fit(toy_job.toy_job(ToyConfig(), inputs=before), tmp_path / "run")
    with pytest.raises(DataError, match="the held-out data changed since this run began"):
        fit(toy_job.toy_job(ToyConfig(), inputs=now), tmp_path / "run")


def test_other_frozen_weights_are_refused(tmp_path):
    fit(toy_job.toy_job(ToyConfig()), tmp_path / "run")
    with pytest.raises(DataError, match="the frozen weights changed since this run began"):
        fit(toy_job.toy_job(ToyConfig(), frozen={"goal": jnp.zeros(())}), tmp_path / "run")


def test_the_digest_of_weights_sees_bits_and_their_places():
    digests = {
        weights_digest({"w": jnp.asarray(w)}) for w in ([[1.0, 2.0]], [[2.0, 1.0]], [[1.0], [2.0]], [[1.0, 2.5]])
    }
    assert len(digests) == 4 and weights_digest({"w": jnp.asarray([[1.0, 2.0]])}) in digests


def test_a_foreign_folder_in_the_place_of_an_export_is_refused_before_training(tmp_path):
    config, directory = ToyConfig(), tmp_path / "run"
    with claim(directory, config):
        pass
    foreign = directory / config.run.export[0] / "notes.txt"
    foreign.parent.mkdir()
    foreign.write_text("mine")
    with pytest.raises(CheckpointError, match="holds no checkpoint, but notes.txt"):
        fit(toy_job.toy_job(config), directory)
    assert foreign.read_text() == "mine" and not (directory / "metrics.jsonl").exists()


def test_a_run_goes_on_under_a_version_that_has_a_setting_more(tmp_path):
    with claim(tmp_path / "run", ToyConfig()):
        pass
    file = tmp_path / "run" / "settings.yaml"
    file.write_text("".join(line for line in file.read_text().splitlines(True) if not line.startswith("ballast")))
    with claim(tmp_path / "run", ToyConfig()):
        pass
    with pytest.raises(ConfigError, match="ballast: was 1, now 2"):
        with claim(tmp_path / "run", replace(ToyConfig(), ballast=2)):
            pass


def test_a_run_keeps_the_date_that_its_chat_template_writes(tmp_path):
    tokenizer = chat_tokenizer("{{ strftime_now('%d %b %Y') }}|" + CHATML)
    turns = [{"role": "user", "content": "Hello"}]
    begun = dated(with_run(date="2024-07-26"), tokenizer, tmp_path / "run")
    first = chat_text(tokenizer, turns).text
    assert first.startswith("26 Jul 2024|")
    with claim(tmp_path / "run", begun):
        pass
    on_another_day = chat_tokenizer("{{ strftime_now('%d %b %Y') }}|  " + CHATML)
    assert dated(ToyConfig(), on_another_day, tmp_path / "run") == begun
    assert chat_text(on_another_day, turns).text.startswith("26 Jul 2024|")
    with pytest.raises(ConfigError, match="run.date: was '2024-07-26', now '2024-07-27'"):
        with claim(tmp_path / "run", dated(with_run(date="2024-07-27"), tokenizer, tmp_path / "run")):
            pass
    assert dated(ToyConfig(), chat_tokenizer(), tmp_path / "new") == ToyConfig()  # a template without date
    file = tmp_path / "run" / "settings.yaml"
    file.write_text("run: {date: 2024-07-26}")  # YAML makes a date of it
    assert dated(ToyConfig(), tokenizer, tmp_path / "run") == begun
    file.write_text("run: {date: tomorrow}")
    with pytest.raises(ConfigError, match="run.date is 'tomorrow'; want YYYY-MM-DD"):
        dated(ToyConfig(), tokenizer, tmp_path / "run")


def test_stop_keeps_the_state_from_before_and_may_be_changed_to_skip(tmp_path):
    config = replace(with_run(save_every=2), poison=(5,))
    with pytest.raises(TrainingDiverged, match="not finite at step 5"):
        fit(toy_job.toy_job(config), tmp_path / "run")
    assert saved_steps(tmp_path / "run")[-1] == 4 and losses(tmp_path / "run")[5:] == [None]
    state = fit(toy_job.toy_job(replace(config, run=replace(config.run, nan_policy="skip"))), tmp_path / "run")
    assert np.isfinite(state["w"]).all() and len(lines(tmp_path / "run")) == STEPS


def scores(*values):
    """An evaluation that gives these figures one after the other."""
    given = iter(values)
    return lambda state, frozen: {"score": next(given), "count": float(state["count"])}


@pytest.mark.parametrize("best, step", [("score", 4), ("-score", 2)])
def test_the_best_evaluated_checkpoint_is_kept(tmp_path, best, step):
    job = toy_job.toy_job(with_run(eval_every=2, keep=1), evaluate=scores(5.0, 1.0, 3.0, 2.0), best=best)
    fit(job, tmp_path / "run")
    assert saved_steps(tmp_path / "run") == [step, 8]
    assert [(line["step"], line["score"]) for line in lines(tmp_path / "run", "evaluation.jsonl")] == [
        (2, 5.0),
        (4, 1.0),
        (6, 3.0),
        (8, 2.0),
    ]
    assert int(best_state(job, tmp_path / "run")["count"]) == step


def test_a_run_stopped_in_the_step_of_an_evaluation_makes_up_for_it(tmp_path, monkeypatch):
    """The second attempt dies at step 6, before it has saved anything."""

    def go_on(*figures):
        job = toy_job.toy_job(with_run(eval_every=2, save_every=8, keep=1), evaluate=scores(*figures), best="score")
        fit(job, tmp_path / "run")
        return job

    def evaluated():
        return [(line["step"], line["score"]) for line in lines(tmp_path / "run", "evaluation.jsonl")]

    monkeypatch.setenv("TOY_SIGNAL", "TERM:3")
    with pytest.raises(Interrupted):
        go_on(5.0)
    assert saved_steps(tmp_path / "run")[-1] == 4 and evaluated() == [(2, 5.0)]
    monkeypatch.delenv("TOY_SIGNAL")
    with pytest.raises(StopIteration):
        go_on(1.0)
    assert evaluated() == [(2, 5.0), (4, 1.0)]
    job = go_on(1.0, 3.0, 2.0)
    assert evaluated() == [(2, 5.0), (4, 1.0), (6, 3.0), (8, 2.0)]
    assert saved_steps(tmp_path / "run") == [4, 8] and int(best_state(job, tmp_path / "run")["count"]) == 4


def test_a_run_that_goes_on_holds_one_state(tmp_path):
    config = with_run(save_every=4)
    fit(toy_job.toy_job(config), tmp_path / "run")
    job = toy_job.toy_job(config)
    state = fit(job, tmp_path / "run")
    assert int(state["count"]) == STEPS and all(leaf.is_deleted() for leaf in job.state.values())


def test_evaluation_without_anything_to_evaluate_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="nothing to evaluate"):
        fit(toy_job.toy_job(with_run(eval_every=2)), tmp_path / "run")


def test_the_profile_of_a_window_is_written(tmp_path):
    fit(toy_job.toy_job(with_run(profile=(2, 3))), tmp_path / "run")
    assert list((tmp_path / "run" / "profile").rglob("*.xplane.pb"))


def script(directory: Path, *overrides: str, devices: int = 1, **trouble: str) -> subprocess.Popen:
    command = [sys.executable, toy_job.__file__, str(directory), *overrides]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment(devices) | trouble)


def finish(*processes: subprocess.Popen) -> list[tuple[int, str]]:
    told = [process.communicate(timeout=300)[1] for process in processes]
    return [(process.returncode, text) for process, text in zip(processes, told, strict=True)]


def test_a_full_disk_stops_the_run_and_leaves_the_last_checkpoint_whole(tmp_path, whole):
    config = replace(with_run(save_every=2), ballast=100_000)
    ((code, message),) = finish(script(tmp_path / "run", "ballast=100000", "run.save_every=2", TOY_FULL="5"))
    assert code == 2 and "could not be written" in message and "make room" in message, message
    assert saved_steps(tmp_path / "run") in ([2], [2, 4])
    fit(toy_job.toy_job(config), tmp_path / "run")
    assert losses(tmp_path / "run") == losses(whole[0])


@pytest.mark.parametrize("trouble, last", [("TERM:3", 4), ("KILL:3", None)])
def test_a_signal_during_a_save_costs_nothing(tmp_path, whole, trouble, last):
    """After step 3 a save of 16 MB is being written in the background as batch 3 is asked for."""
    config = replace(ToyConfig(), ballast=4_000_000)
    ((code, message),) = finish(script(tmp_path / "run", "ballast=4000000", TOY_SIGNAL=trouble))
    if last is None:
        assert code == -signal.SIGKILL and saved_steps(tmp_path / "run") == []
    else:
        assert code == 128 + signal.SIGTERM, message
        assert saved_steps(tmp_path / "run")[-1] == last
    state = fit(toy_job.toy_job(config), tmp_path / "run")
    assert losses(tmp_path / "run") == losses(whole[0])
    assert float(state["ballast"][0]) == pytest.approx(float(toy_job.toy_job(config).state["ballast"][0]) + STEPS)


def test_a_second_process_in_a_run_directory_is_refused_by_the_name_of_the_first(tmp_path):
    directory = tmp_path / "run"
    directory.mkdir()
    (directory / "settings.tmp").touch()  # of a run of an earlier version that was killed as it began
    with claim(directory, ToyConfig()):
        ((code, message),) = finish(script(directory))
        assert code == 2 and f"{directory} is in use by process {os.getpid()} on " in message, message
        (directory / ".metrics.jsonl.0123abcd.partial").touch()
        fit(toy_job.toy_job(ToyConfig()), directory)  # the process that holds the directory may train there
        assert len(lines(directory)) == STEPS
    with claim(directory, ToyConfig()):
        assert not list(directory.glob(".*.partial"))
    assert not list(directory.glob(".*"))


def test_a_run_goes_on_with_fewer_devices(tmp_path, whole):
    cache = f"run.compile_cache={tmp_path / 'cache'}"
    trouble = {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    for devices, stop in ((8, 2), (4, 4)):
        settings = f"mesh.data={devices}", cache
        process = script(tmp_path / "run", *settings, devices=devices, TOY_SIGNAL=f"TERM:{stop}", **trouble)
        ((code, message),) = finish(process)
        assert code == 128 + signal.SIGTERM, message
        assert saved_steps(tmp_path / "run")[-1] == stop + 1
    assert any("step" in path.name for path in (tmp_path / "cache").iterdir())
    state = fit(toy_job.toy_job(ToyConfig()), tmp_path / "run")
    np.testing.assert_allclose(losses(tmp_path / "run"), losses(whole[0]), rtol=1e-5)
    np.testing.assert_allclose(state["w"], whole[1]["w"], atol=1e-6)


def test_two_processes_stop_together_and_one_goes_on(tmp_path):
    """The signal goes to one of them; JAX's service looks for it every second."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    shared = ["mesh.fsdp=4", "optim.steps=60", f"distributed.coordinator={address}", "distributed.processes=2"]
    trouble = {"TOY_SIGNAL": "TERM:3", "TOY_PAUSE": "0.1"}
    processes = [
        script(tmp_path / "run", *shared, f"distributed.process={number}", devices=2, **also)
        for number, also in enumerate(({"TOY_PAUSE": "0.1"}, trouble))
    ]
    told = finish(*processes)
    assert [code for code, _ in told] == [128 + signal.SIGTERM] * 2, told
    assert 60 > saved_steps(tmp_path / "run")[-1] == len(lines(tmp_path / "run")) > 3
    config = replace(ToyConfig(), optim=ToyOptim(steps=60))
    for directory in ("run", "alone"):
        fit(toy_job.toy_job(config), tmp_path / directory)
    np.testing.assert_allclose(losses(tmp_path / "run"), losses(tmp_path / "alone"), rtol=1e-5)


@pytest.mark.parametrize("name", ["run [1]", "run\\1"])
def test_paths_in_which_checkpoints_cannot_be_read_are_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot read again"), claim(tmp_path / name, ToyConfig()):
        pass
    assert not any(tmp_path.iterdir())
