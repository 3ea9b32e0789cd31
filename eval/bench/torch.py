"""Programs that need torch, run in a process of another Python, so that torch is never imported here."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal

from elastic_jax.errors import ConfigError

_SCRIPTS = Path(__file__).parents[2] / "benchmarks"


@contextmanager
def torch_process(
    python: str, script: Literal["torch_attention.py", "torch_cache.py", "torch_prefill.py"]
) -> Iterator[Callable]:
    """Starts a script of `benchmarks/` under `python`; the function sends it a line of JSON and returns its answer.

    Raises:
        ConfigError: it cannot be started; and, from the function, where it fails or answers with an `error`.
    """
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    try:
        process = subprocess.Popen([python, str(_SCRIPTS / script)], text=True, **pipes)
    except OSError as error:
        raise ConfigError(f"{python} cannot be started: {error}. Give --torch-python a Python with torch.") from error
    assert process.stdin and process.stdout and process.stderr
    requests, answers, errors = process.stdin, process.stdout, process.stderr

    said: list[str] = []

    def ask(message: Any) -> Any:
        try:
            requests.write(json.dumps(message) + "\n")
            requests.flush()
            answer = answers.readline()
        except BrokenPipeError:
            answer = ""
        if not answer:
            said.extend(errors.read().strip().splitlines())
            reason = said[-1] if said else "no message"
            raise ConfigError(
                f"torch failed under {python}: {reason}. Give --torch-python a Python that has torch and transformers, "
                "or leave it out."
            )
        answered = json.loads(answer)
        if isinstance(answered, dict) and "error" in answered:
            raise ConfigError(f"torch failed: {answered['error']}")
        return answered

    with process:
        try:
            yield ask
        finally:
            process.kill()
            with suppress(BrokenPipeError):  # a request that a dead process never read
                requests.close()


def threads() -> int:
    """CPU threads for torch: the cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
