"""Router training on meshes of simulated devices and over two processes: the curve of one device, however often it is
stopped and moved."""

import json
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import train_run
from programs import environment
from train_run import STEPS

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

ROWS = ("optim.rows=8", "optim.accumulate=1", "data.held_out=0.2", "run.eval_every=10")
SAME = ("loss", "lm_loss", "sparsity_loss", "grad_norm", "msr", "multiplier_below")


def lines(directory: Path, name: str = "metrics.jsonl") -> list[dict]:
    file = directory / name
    return [json.loads(line) for line in file.read_text().splitlines()] if file.is_file() else []


def start(directory: Path, *overrides: str, devices: int) -> subprocess.Popen:
    command = [sys.executable, train_run.__file__, str(directory), *ROWS, *overrides]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment(devices))


def finish(*processes: subprocess.Popen) -> list[tuple[int, str]]:
    told = [process.communicate(timeout=1200)[1] for process in processes]
    return [(process.returncode, text) for process, text in zip(processes, told, strict=True)]


def stop_after(directory: Path, steps: int, process: subprocess.Popen) -> None:
    while process.poll() is None and len(lines(directory)) < steps:
        time.sleep(0.005)
    process.send_signal(signal.SIGTERM)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    directory = tmp_path_factory.mktemp("alone") / "run"
    assert finish(start(directory, devices=1)) == [(0, "")]
    return directory


def assert_same_curve(directory: Path, alone: Path) -> None:
    """Losses step by step, and what was measured on held-out samples."""
    found = lines(directory)
    assert [line["step"] for line in found] == list(range(STEPS))
    for name in SAME:
        got, want = (np.array([line[name] for line in curve], float) for curve in (found, lines(alone)))
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5, err_msg=name)
    found, wanted = (lines(run, "evaluation.jsonl") for run in (directory, alone))
    assert [line["step"] for line in found] == [line["step"] for line in wanted] == [10, STEPS]
    for line, other in zip(found, wanted, strict=True):
        assert line == pytest.approx(other, rel=1e-4, abs=1e-5)


def test_eight_devices_then_four_then_one(tmp_path, alone):
    directory = tmp_path / "run"
    for devices, mesh, stop in ((8, ("mesh.data=4", "mesh.fsdp=2"), 4), (4, ("mesh.fsdp=2", "mesh.context=2"), 10)):
        process = start(directory, *mesh, devices=devices)
        stop_after(directory, stop, process)
        ((code, message),) = finish(process)
        assert code == 128 + signal.SIGTERM, message
        assert stop <= len(lines(directory)) < STEPS
    assert finish(start(directory, devices=1)) == [(0, "")]
    assert_same_curve(directory, alone)
    assert (directory / "router" / "router.safetensors").is_file()


def test_int8_weights_on_eight_devices(tmp_path):
    few = ("weights=int8", "optim.steps=3", "data.held_out=0.0", "run.eval_every=0")
    one, eight = tmp_path / "one", tmp_path / "eight"
    mesh = ("mesh.fsdp=2", "mesh.tensor=2", "mesh.context=2")
    for directory, axes, devices in ((one, (), 1), (eight, mesh, 8)):
        ((code, message),) = finish(start(directory, *few, *axes, devices=devices))
        assert code == 0, message
    for name in SAME:
        got, want = (np.array([line[name] for line in lines(run)], float) for run in (eight, one))
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5, err_msg=name)
    assert len(lines(eight)) == 3


def test_two_processes_train_stop_and_go_on(tmp_path, alone):
    directory = tmp_path / "run"

    def both() -> list[subprocess.Popen]:
        with socket.socket() as free:
            free.bind(("localhost", 0))
            address = f"localhost:{free.getsockname()[1]}"
        shared = ["mesh.fsdp=4", f"distributed.coordinator={address}", "distributed.processes=2"]
        return [start(directory, *shared, f"distributed.process={number}", devices=2) for number in (0, 1)]

    processes = both()
    stop_after(directory, 3, processes[1])
    told = finish(*processes)
    assert [code for code, _ in told] == [128 + signal.SIGTERM] * 2, told
    assert 3 <= len(lines(directory)) < STEPS
    told = finish(*both())
    assert [code for code, _ in told] == [0, 0], told
    assert_same_curve(directory, alone)
    assert (directory / "router" / "router.safetensors").is_file()
