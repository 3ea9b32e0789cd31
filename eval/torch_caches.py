"""The caches of `transformers`, filled and timed in a process of their own, so that torch is never imported here."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from elastic_jax.errors import ConfigError

_SCRIPT = Path(__file__).parents[1] / "benchmarks" / "torch_cache.py"


class TorchCaches(NamedTuple):
    """What that process has."""

    bytes_by_kind: dict[str, int]
    missing: dict[str, str]
    """Why a kind of cache is not there."""
    seconds: Callable[[str], float]
    """Times one decode step of a kind."""


@contextmanager
def torch_caches(python: str, model: Path, *, dtype: str, rows: int, tokens: int, steps: int) -> Iterator[TorchCaches]:
    """Starts `python` with the Hugging Face model in folder `model` and caches of `rows` rows of `tokens` tokens.

    Raises:
        ConfigError: that Python cannot run it; from the function too.
    """
    threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    job: Mapping[str, Any] = {
        "model": str(model), "dtype": dtype, "rows": rows, "tokens": tokens, "steps": steps, "threads": threads
    }  # fmt: skip
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    try:
        process = subprocess.Popen([python, str(_SCRIPT)], text=True, **pipes)
    except OSError as error:
        raise ConfigError(f"{python} cannot be started: {error}. Give --torch-python a Python with torch.") from error
    assert process.stdin and process.stdout and process.stderr
    requests, answers, errors = process.stdin, process.stdout, process.stderr

    def ask(line: str) -> Any:
        try:
            requests.write(line + "\n")
            requests.flush()
            answer = answers.readline()
        except BrokenPipeError:
            answer = ""
        if not answer:
            lines = errors.read().strip().splitlines() or ["no message"]
            raise ConfigError(
                f"transformers failed under {python}: {lines[-1]}. Give --torch-python a Python that has torch and "
                "transformers, or leave it out."
            )
        return json.loads(answer)

    with process:
        try:
            found = ask(json.dumps(job))
            there = {kind: size for kind, size in found.items() if isinstance(size, int)}
            missing = {kind: reason for kind, reason in found.items() if kind not in there}
            yield TorchCaches(there, missing, ask)
        finally:
            process.kill()
