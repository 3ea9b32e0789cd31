"""An evaluation that is killed at any moment ends, when given again, in the results of an undisturbed one."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from programs import KILLS

ROOT = Path(__file__).parents[2]
TIMED = ("prefill_s", "decode_s")


def command(checkpoint: Path, out: Path) -> list[str]:
    words = "eval ruler --dtype float32 --tasks niah_single_1,niah_multikey_2 --lengths 448 --per-task 4"
    program = [
        sys.executable,
        "-m",
        "elastic_jax.cli",
        *words.split(),
        "--views",
        "full,elastic",
        "--batch-tokens",
        "448",
    ]
    return [*program, "--model", str(checkpoint), "--out", str(out)]


def results(out: Path) -> dict:
    """What a run has found, without its times."""
    records = {}
    for line in (out / "journal.jsonl").read_text().splitlines()[1:]:
        entry = json.loads(line)
        for name in TIMED:
            entry["value"]["numbers"].pop(name, None)
        records[entry["key"]] = entry["value"]
    report = json.loads((out / "results.json").read_text())
    for row in [*report["rows"], *report["means"]]:
        for name in TIMED:
            row.pop(name, None)
    return {"records": records, "report": {name: report[name] for name in report if name != "command"}}


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_run_killed_at_random_moments_ends_in_the_same_results(checkpoint, tmp_path):
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    start = time.monotonic()
    subprocess.run(command(checkpoint, whole), check=True, cwd=ROOT, env=environment, capture_output=True)
    seconds = time.monotonic() - start
    rng, dead = random.Random(0), 0
    while dead < KILLS:
        process = subprocess.Popen(
            command(checkpoint, killed),
            cwd=ROOT,
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            process.wait(rng.uniform(0.2, 1.05) * seconds)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
            dead += 1
        for file in whole.glob("results.*"):  # what is there is whole
            found = killed / file.name
            if found.exists() and file.suffix == ".png":
                assert found.read_bytes() == file.read_bytes()
            elif found.exists():
                assert found.read_text().count("\n") == file.read_text().count("\n")
        if (killed / "results.json").exists():
            assert results(killed) == results(whole)
            shutil.rmtree(killed)
    subprocess.run(command(checkpoint, killed), check=True, cwd=ROOT, env=environment, capture_output=True)
    assert results(killed) == results(whole)
