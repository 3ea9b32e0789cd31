import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
MIB = 2**20


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("jax_cuda13_plugin") is None, reason="needs jax[cuda13]; no GPU is needed")
@pytest.mark.parametrize("chip, impl", [("a100", "triton"), ("h100", "triton"), ("h100", "mosaic_gpu")])
def test_eight_gpus_divide_batch_and_heads(chip, impl):
    """4 x 16384 tokens, 32 query and 8 KV heads of 128, in 16 bits: each GPU has its eighth and moves nothing."""
    done = subprocess.run(
        [sys.executable, ROOT / "tests" / "support" / "gpu_ahead_of_time.py", "sharded", chip, impl],
        capture_output=True, text=True, cwd=ROOT,
        env=os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests' / 'support'}"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    programs = {report["program"]: report for report in map(json.loads, done.stdout.splitlines())}
    assert set(programs) == ({"prefill", "training step"} if impl == "triton" else {"prefill"})
    q, kv = 4 * 16384 * 32 * 128 * 2 // 8, 4 * 16384 * 8 * 128 * 2 // 8
    for report in programs.values():
        print(chip, report)
        assert any(call.startswith(impl) for call in report["calls"])
        assert report["collectives"] == []
        assert report["arguments"] == q + 2 * kv + 16
    assert programs["prefill"]["temporaries"] <= 4 * MIB
    if impl == "triton":
        # What the backward pass needs of the forward one: the branch that was not chosen, and log-sum-exps.
        assert programs["training step"]["temporaries"] <= q + 8 * MIB
