"""The 64K recipes train a toy model on eight simulated devices, with their own mesh."""

import math
from pathlib import Path

import pytest
from programs import reports

from elastic_jax.weights.router_only import ROUTER_CONFIG

ROOT = Path(__file__).parents[3]


@pytest.mark.slow
def test_recipes_train_on_eight_devices(tmp_path: Path):
    names = sorted(file.stem for file in (ROOT / "configs").glob("router_*_64k.yaml"))
    assert len(names) == 3
    runs = reports("recipe_program.py", tmp_path, *names)
    assert [run["name"] for run in runs] == names
    for run in runs:
        assert len(run["losses"]) == 2 and all(math.isfinite(loss) for loss in run["losses"])
        assert (tmp_path / run["name"] / "router" / ROUTER_CONFIG).exists()
