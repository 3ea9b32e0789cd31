"""Programs that need torch, run in a process of another Python, so that torch is never imported here.

The caches of `transformers`, filled and timed under another Python.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal, NamedTuple

from elastic_jax.errors import ConfigError
from eval.bench.work import HeadShape

_SCRIPTS = Path(__file__).parents[2] / "benchmarks"

type Ask = Callable[[Mapping[str, Any]], float]
"""Seconds of one call of a job (see `torch_job`); the first time the job is asked for it is warmed up before."""


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


@contextmanager
def torch_attention(python: str) -> Iterator[Ask]:
    """The function that times attention jobs of torch; see `torch_process`."""
    with torch_process(python, "torch_attention.py") as ask:
        yield lambda job: ask(job)["seconds"]


def threads() -> int:
    """CPU threads for torch: the cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


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
        "threads": threads(),
    }


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
    job = {
        "model": str(model), "dtype": dtype, "rows": rows, "tokens": tokens, "steps": steps, "threads": threads()
    }  # fmt: skip
    with torch_process(python, "torch_cache.py") as ask:
        found = ask(job)
        there = {kind: size for kind, size in found.items() if isinstance(size, int)}
        missing = {kind: reason for kind, reason in found.items() if kind not in there}
        yield TorchCaches(there, missing, ask)
