"""SIGKILL at random moments: what was begun goes on to the same bits, and nothing half-written looks whole."""

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import killed_run
import numpy as np
import pytest
from checkpoints import same_bits
from programs import KILLS, environment
from safetensors.numpy import load_file

from elastic_jax.settings import read_yaml
from train.loop.directory import LOCK_FILE

_TIMES = {"seconds", "tokens_per_second", "flops_per_second", "mfu", "device_memory_peak"}


def start(kind: str, directory: Path) -> subprocess.Popen:
    """A process that trains, and has claimed the directory by now, unless it ended before."""
    command = [sys.executable, killed_run.__file__, kind, str(directory)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment())
    while process.poll() is None and not _holds(directory, process.pid):
        time.sleep(0.002)
    return process


def _holds(directory: Path, pid: int) -> bool:
    """Whether the process holds the run directory; the lock file of one that was killed stays."""
    try:
        return f"process {pid} " in (directory / LOCK_FILE).read_text()
    except FileNotFoundError:
        return False


def lines(file: Path) -> list[dict[str, Any]]:
    return [{k: v for k, v in json.loads(line).items() if k not in _TIMES} for line in file.read_text().splitlines()]


def exported(directory: Path) -> dict[str, dict[str, np.ndarray]]:
    """The tensors of every export that has its name already."""
    forms = [form for form in ("router", "elastic", "hf", "heads") if (directory / form).is_dir()]
    return {form: load_file(next((directory / form).glob("*.safetensors"))) for form in forms}


def check_whole(directory: Path, whole: Path) -> None:
    """Whatever a killed run has left under its final name can be read, and an export is the one of the whole run."""
    if (directory / "settings.yaml").exists():
        assert read_yaml(directory / "settings.yaml") == read_yaml(whole / "settings.yaml")
    wanted = exported(whole)
    for form, tensors in exported(directory).items():
        assert same_bits(tensors, wanted[form])
    if (directory / "held_out.json").exists():
        json.loads((directory / "held_out.json").read_text())


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["router", "reward", "heads"])
def test_a_run_killed_at_random_moments_ends_as_if_left_alone(kind: str, tmp_path: Path) -> None:
    process = start(kind, tmp_path / "whole")
    began = time.monotonic()
    _, said = process.communicate()
    assert process.returncode == 0, said
    seconds = time.monotonic() - began
    rng, kills, number = np.random.default_rng(), 0, 0
    while kills < KILLS:
        number += 1
        directory = tmp_path / f"killed {number}"
        finished = False
        while not finished:
            process = start(kind, directory)
            try:
                process.wait(None if kills == KILLS else rng.uniform(0, seconds))
                finished = True
            except subprocess.TimeoutExpired:
                process.kill()
                kills += 1
            _, said = process.communicate()
            check_whole(directory, tmp_path / "whole")
        assert process.returncode == 0, said
        for file in ("metrics.jsonl", "evaluation.jsonl"):
            assert lines(directory / file) == lines(tmp_path / "whole" / file)
        assert exported(directory).keys() == exported(tmp_path / "whole").keys()
        if kind == "reward":
            results = [(folder / "held_out.json").read_text() for folder in (directory, tmp_path / "whole")]
            assert results[0] == results[1]
