"""Dense attention of torch, timed in a process of its own, so that torch is never imported here."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from elastic_jax.errors import ConfigError
from eval.attention_work import HeadShape

_SCRIPT = Path(__file__).parents[1] / "benchmarks" / "torch_attention.py"

type Ask = Callable[[Mapping[str, Any]], float]
"""Seconds of one call of a job (see `torch_job`); the first time the job is asked for it is warmed up before."""


@contextmanager
def torch_process(python: str) -> Iterator[Ask]:
    """Starts `python` with torch and yields the function that times jobs there.

    Raises:
        ConfigError: it cannot be started; and, from the function, where torch fails.
    """
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    try:
        process = subprocess.Popen([python, str(_SCRIPT)], text=True, **pipes)
    except OSError as error:
        raise ConfigError(f"{python} cannot be started: {error}. Give --torch-python a Python with torch.") from error
    assert process.stdin and process.stdout and process.stderr
    requests, answers, errors = process.stdin, process.stdout, process.stderr

    said: list[str] = []

    def ask(job: Mapping[str, Any]) -> float:
        try:
            requests.write(json.dumps(job) + "\n")
            requests.flush()
            answer = answers.readline()
        except BrokenPipeError:
            answer = ""
        if not answer:
            said.extend(errors.read().strip().splitlines())
            reason = said[-1] if said else "no message"
            raise ConfigError(f"torch failed: {reason}. Give --torch-python a Python with torch, or leave it out.")
        answered = json.loads(answer)
        if "error" in answered:
            raise ConfigError(f"torch failed: {answered['error']}")
        return answered["seconds"]

    with process:
        try:
            yield ask
        finally:
            process.kill()
            with suppress(BrokenPipeError):  # a request that a dead process never read
                requests.close()


def torch_job(
    shape: HeadShape,
    tokens: int,
    dtype: str,
    *,
    kernel: str = "sdpa",
    device: str = "cpu",
    training: bool = False,
    calls: int = 1,
) -> dict[str, Any]:
    """A job of causal attention: `kernel` "sdpa" or "flex", `device` "cpu" or "cuda", forward or a training step."""
    return {
        "kernel": kernel,
        "device": device,
        "shape_q": [1, shape.query_heads, tokens, shape.head_dim],
        "shape_kv": [1, shape.kv_heads, tokens, shape.head_dim],
        "dtype": dtype,
        "training": training,
        "calls": calls,
        "threads": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
    }
