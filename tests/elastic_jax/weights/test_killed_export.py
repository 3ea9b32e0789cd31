"""SIGKILL at random moments of an export: what has its name is whole, and the next export ends as if undisturbed."""

import subprocess
import sys
import time
from pathlib import Path

import killed_export
import numpy as np
import pytest
from programs import KILLS, environment

from elastic_jax.errors import ElasticError
from elastic_jax.files import remove_partial
from elastic_jax.weights.safetensors_dir import open_weights

FORMATS = ("hf", "elastic", "router", "reward")
Files = dict[str, bytes]


def export(directory: Path, source: Path, *words: object) -> subprocess.Popen:
    command = [sys.executable, killed_export.__file__, str(directory), str(source), *map(str, words)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment())


def finish(process: subprocess.Popen) -> None:
    said, _ = process.communicate()
    assert process.returncode == 0, said


def contents(directory: Path) -> Files:
    return {file.name: file.read_bytes() for file in directory.iterdir()}


def tensors(directory: Path) -> dict[str, bytes] | None:
    """What a reader gets from a directory; None where it is refused."""
    try:
        source = open_weights(directory)
        return {name: source.read(name).tobytes() for name in source.tensors}
    except ElasticError:
        return None


@pytest.mark.slow
def test_an_export_killed_at_random_moments_is_whole_or_not_there(checkpoint: Path, tmp_path: Path) -> None:
    whole = [tmp_path / str(seed) for seed in (1, 2)]
    for seed, directory in enumerate(whole, 1):
        finish(export(directory, checkpoint, seed))
    wanted = {form: [contents(directory / form) for directory in whole] for form in FORMATS}
    rng, killed = np.random.default_rng(), tmp_path / "killed"
    for _ in range(KILLS):
        process = export(killed, checkpoint, 1, 2, "again")
        assert process.stdout is not None and process.stdout.readline() == "begins\n"
        time.sleep(rng.uniform(0, 2))
        process.kill()
        process.communicate()
        for form in FORMATS:
            if (killed / form).exists():
                assert contents(killed / form) in wanted[form]
        for partial in killed.glob(".*"):
            assert tensors(partial) in [None, *(tensors(directory / form) for directory in whole for form in FORMATS)]
    assert {*FORMATS} <= {entry.name for entry in killed.iterdir()}
    finish(export(killed, checkpoint, 1, 2))
    remove_partial(killed)
    assert {entry.name for entry in killed.iterdir()} == {*FORMATS}
    assert all(contents(killed / form) == wanted[form][1] for form in FORMATS)
