"""Timing of programs that take turns, so that a slow minute of the machine meets all of them.

Prefill time of the same prompts under each routing, measured side by side.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from elastic_jax.generation import prefill
from elastic_jax.layout import pad_rows
from elastic_jax.model import ElasticForCausalLM
from elastic_jax.routing import Imposed


def seconds(function: Callable[..., object], *arguments: Any, calls: int = 1) -> float:
    """Wall-clock seconds of one of `calls` calls in a row, the results waited for at the end."""
    start = time.perf_counter()
    result = None
    for _ in range(calls):
        result = function(*arguments)
    jax.block_until_ready(result)
    return (time.perf_counter() - start) / calls


def take_turns[K](
    programs: Mapping[K, Callable[[], float]], rounds: int, on_call: Callable[[], object] = lambda: None
) -> dict[K, list[float]]:
    """Seconds that each program says it took, round by round; warm them up before."""
    times: dict[K, list[float]] = {name: [] for name in programs}
    for _ in range(rounds):
        for name, program in programs.items():
            times[name].append(program())
            on_call()
    return times


def fastest[K](programs: Mapping[K, Callable[[], float]], rounds: int) -> dict[K, float]:
    """Least seconds of each program, taking turns; the first call, which compiles, does not count."""
    take_turns(programs, 1)
    return {name: min(times) for name, times in take_turns(programs, rounds).items()}


def prefill_seconds(
    model: ElasticForCausalLM,
    prompts: Sequence[Sequence[int]],
    routings: Mapping[str, Imposed | None],
    *,
    tokens: int,
    repeats: int = 3,
) -> dict[str, float]:
    """Median seconds from a prompt, padded to `tokens`, to the logits of its next token and all keys and values.

    One figure for each of the named routings. Compilation is not counted. They take turns on each prompt, so that a
    change in the machine's load falls on all.
    """
    resolved = {name: model.resolved(routing, 1) for name, routing in routings.items()}
    times: dict[str, list[float]] = {name: [] for name in routings}
    for number, prompt in enumerate(prompts):
        ids, lengths = map(jnp.asarray, pad_rows([prompt], tokens))
        programs = {
            name: partial(seconds, prefill, run, ids, lengths, gates) for name, (run, gates) in resolved.items()
        }
        if number == 0:
            take_turns(programs, 1)
        for name, spent in take_turns(programs, repeats).items():
            times[name] += spent
    return {name: statistics.median(spent) for name, spent in times.items()}
