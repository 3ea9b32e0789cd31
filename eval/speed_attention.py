"""Speed of attention alone: is skipped work skipped time, and how do we compare with torch?"""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

from elastic_jax.errors import ConfigError
from pallas_kernels import hybrid_attention, routed_attention

if TYPE_CHECKING:
    from eval.cli_attention import BenchAttentionSettings

_TORCH_SCRIPT = Path(__file__).parents[1] / "benchmarks" / "torch_attention.py"
BLOCK, SINK_BLOCKS, LOCAL_BLOCKS = 128, 1, 16


@dataclass(frozen=True)
class AttentionSpeed:
    """Two programs timed in turns."""

    compared: str
    tokens: int
    seconds: float
    baseline_seconds: float
    allowed: float | None = None
    """Speed-up that the skipped work allows."""

    @property
    def speed_up(self) -> float:
        return self.baseline_seconds / self.seconds


def full_against_torch(settings: BenchAttentionSettings) -> AttentionSpeed:
    """All heads full, against torch's fused causal attention.

    Raises:
        ConfigError: that Python cannot run torch.
    """
    q, k, v = _operands(settings, settings.tokens, settings.query_heads, settings.kv_heads)
    modes = jnp.zeros((1, settings.kv_heads), jnp.int8)
    full = jax.jit(hybrid_attention)
    with torch_attention(settings) as torch_seconds:
        best = _take_turns(
            {"ours": lambda: _seconds(full, q, k, v, modes), "torch": torch_seconds}, rounds=settings.rounds
        )
    return AttentionSpeed("full attention / torch", settings.tokens, best["ours"], best["torch"])


def mixture_against_full(settings: BenchAttentionSettings) -> AttentionSpeed:
    """7 of 10 KV heads sparse, against the same program with all heads full."""
    groups = settings.query_heads // settings.kv_heads
    q, k, v = _operands(settings, settings.sparse_tokens, 10 * groups, 10)
    attend = jax.jit(hybrid_attention)
    modes = {"full": jnp.zeros((1, 10), jnp.int8), "mixture": jnp.array([[0, 1, 1, 0, 1, 1, 0, 1, 1, 1]], jnp.int8)}
    best = _take_turns(
        {name: lambda mode=mode: _seconds(attend, q, k, v, mode) for name, mode in modes.items()},
        rounds=settings.rounds,
    )
    allowed = 1 / (0.3 + 0.7 * kept_share(settings.sparse_tokens))
    return AttentionSpeed("70 % sparse / full", settings.sparse_tokens, best["mixture"], best["full"], allowed)


def training_against_full(settings: BenchAttentionSettings) -> AttentionSpeed:
    """Forward and backward of routed attention with all heads full, against plain full attention's."""
    operands = _operands(settings, settings.tokens, settings.query_heads, settings.kv_heads)
    modes = jnp.zeros((1, settings.kv_heads), jnp.int8)

    def total(out: jax.Array) -> jax.Array:
        return jnp.sum(out.astype(jnp.float32))

    full = jax.jit(jax.grad(lambda q, k, v: total(hybrid_attention(q, k, v, modes)), (0, 1, 2)))
    routed = jax.jit(jax.grad(lambda q, k, v, z: total(routed_attention(q, k, v, z)), (0, 1, 2, 3)))
    gates = jnp.ones((1, settings.kv_heads))
    best = _take_turns(
        {"full": lambda: _seconds(full, *operands), "routed": lambda: _seconds(routed, *operands, gates)},
        rounds=settings.rounds,
    )
    return AttentionSpeed("routed / full, forward + backward", settings.tokens, best["routed"], best["full"])


def kept_share(tokens: int) -> float:
    """Share of the causal (query, key) pairs that a sparse head keeps."""
    kept = 0
    for start in range(0, tokens, BLOCK):
        block, rows = start // BLOCK, min(BLOCK, tokens - start)
        before = min(block, SINK_BLOCKS + LOCAL_BLOCKS - 1)
        kept += before * BLOCK * rows + rows * (rows + 1) // 2
    return kept / (tokens * (tokens + 1) / 2)


@contextmanager
def torch_attention(settings: BenchAttentionSettings) -> Iterator[Callable[[], float]]:
    """A function that times one call in a running torch process."""
    job = {
        "shape_q": [1, settings.query_heads, settings.tokens, settings.head_dim],
        "shape_kv": [1, settings.kv_heads, settings.tokens, settings.head_dim],
        "dtype": settings.dtype,
        "threads": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
    }
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    try:
        process = subprocess.Popen([str(settings.torch_python), str(_TORCH_SCRIPT)], text=True, **pipes)
    except OSError as error:
        raise ConfigError(
            f"the comparison with torch failed: {error}. Give --torch-python a Python with torch."
        ) from error

    assert process.stdin and process.stdout and process.stderr
    requests, answers, errors = process.stdin, process.stdout, process.stderr

    def ask(line: str) -> str:
        try:
            requests.write(line + "\n")
            requests.flush()
            answer = answers.readline()
        except BrokenPipeError:
            answer = ""
        if not answer:
            lines = errors.read().strip().splitlines() or ["no message"]
            raise ConfigError(f"torch failed: {lines[-1]}. Give --torch-python a Python with torch, or leave it out.")
        return answer

    with process:
        try:
            ask(json.dumps(job))
            yield lambda: float(ask("once"))
        finally:
            process.kill()


def _operands(settings: BenchAttentionSettings, tokens: int, heads: int, kv_heads: int) -> list[jax.Array]:
    keys = jax.random.split(jax.random.key(0), 3)
    shapes = [(1, tokens, n, settings.head_dim) for n in (heads, kv_heads, kv_heads)]
    return [jax.random.normal(key, shape, settings.dtype) for key, shape in zip(keys, shapes, strict=True)]


def _seconds(function: Callable[..., object], *arguments: jax.Array) -> float:
    start = time.perf_counter()
    jax.block_until_ready(function(*arguments))
    return time.perf_counter() - start


def _take_turns(programs: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, float]:
    """Fastest call of each program; the first, which compiles, does not count."""
    for program in programs.values():
        program()
    times = {name: [] for name in programs}
    for _ in range(rounds):
        for name, program in programs.items():
            times[name].append(program())
    return {name: min(values) for name, values in times.items()}
