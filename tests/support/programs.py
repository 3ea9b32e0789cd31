"""Programs that tests start in a process of their own: the number of devices must be set before jax starts."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

SUPPORT = Path(__file__).parent
KILLS = int(os.environ.get("KILLS", "6"))
"""At how many random moments the slow tests kill each program."""


def environment(devices: int = 1) -> dict[str, str]:
    """Lets a program find the packages and the test helpers, and simulates that many devices."""
    # With the flags of this process, so that both compile to the same bits.
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}"
    return os.environ | {"PYTHONPATH": f"{SUPPORT.parents[1]}:{SUPPORT}", "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}


def user_environment() -> dict[str, str]:
    """That of a user: JAX promotes as usual, and XLA optimises, for a real model runs longer than it compiles."""
    of_tests = {"XLA_FLAGS", "JAX_NUMPY_DTYPE_PROMOTION", "JAX_NUMPY_RANK_PROMOTION"}
    return {name: value for name, value in os.environ.items() if name not in of_tests}


def reports(program: str, *arguments: object, devices: int = 8) -> list[dict[str, Any]]:
    """The lines of JSON that a program in `tests/support` prints."""
    command = [sys.executable, SUPPORT / program, *map(str, arguments)]
    done = subprocess.run(command, env=environment(devices), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
