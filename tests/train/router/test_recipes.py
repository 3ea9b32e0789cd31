"""The 64K recipes train a toy model on eight simulated devices, with their own mesh."""

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
from train_run import environment

from elastic_jax.weights.router_only import ROUTER_CONFIG

ROOT = Path(__file__).parents[3]


@pytest.mark.slow
def test_recipes_train_on_eight_devices(tmp_path: Path):
    names = sorted(file.stem for file in (ROOT / "configs").glob("router_*_64k.yaml"))
    assert len(names) == 3
    done = subprocess.run(
        [sys.executable, ROOT / "tests" / "support" / "recipe_program.py", tmp_path, *names],
        env=environment(),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    told = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert [run["name"] for run in told] == names
    for run in told:
        assert len(run["losses"]) == 2 and all(math.isfinite(loss) for loss in run["losses"])
        assert (tmp_path / run["name"] / "router" / ROUTER_CONFIG).exists()
