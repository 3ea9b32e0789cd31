import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import pytest

from pallas_kernels import hybrid_attention
from pallas_kernels.gpu import launch

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize(
    "changes, options, words",
    [
        ({"dtype": jnp.float32}, {}, "operands are float32"),
        ({"head_dim": 96}, {}, "head_dim is 96"),
        ({"head_dim": 256}, {}, "needs 328192 bytes of shared memory, of 232448"),
        ({}, {"block_size": 64}, "block_size is 64"),
        ({}, {"window": 5}, "a token window"),
        ({}, {"block_mask": jnp.ones((1, 2, 1, 1), jnp.bool_)}, "block masks"),
    ],
)
def test_cases_that_it_does_not_serve_are_named(changes, options, words, monkeypatch):
    monkeypatch.setattr(launch, "nvidia_capability", lambda: 90)
    dtype, head_dim = changes.get("dtype", jnp.bfloat16), changes.get("head_dim", 64)
    q, kv = jnp.ones((1, 4, 2, head_dim), dtype), jnp.ones((1, 4, 1, head_dim), dtype)
    with pytest.raises(NotImplementedError, match=words):
        hybrid_attention(q, kv, kv, jnp.zeros((1, 1), jnp.int8), **options, impl="mosaic_gpu")


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("jax_cuda13_plugin") is None, reason="needs jax[cuda13]; no GPU is needed")
@pytest.mark.parametrize("head_dim", [64, 128])
def test_compiles_for_hopper_without_spills(head_dim, tmp_path):
    done = subprocess.run(
        [sys.executable, ROOT / "tests" / "support" / "gpu_ahead_of_time.py", "hopper", tmp_path, str(head_dim)],
        capture_output=True, text=True, cwd=ROOT,
        env=os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests' / 'support'}"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    program = json.loads(done.stdout.splitlines()[-1])
    assert any("mosaic_gpu" in call for call in program["calls"])
    said = "".join(file.read_text() for file in tmp_path.glob("*.ptxas"))
    assert re.findall(r"(\d+) bytes spill stores, (\d+) bytes spill loads", said) == [("0", "0")]
    assert "sm_90a" in said
