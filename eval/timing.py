"""Timing of programs that take turns, so that a slow minute of the machine meets all of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

import jax


def seconds(function: Callable[..., object], *arguments: jax.Array, calls: int = 1) -> float:
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
    for program in programs.values():
        program()
    return {name: min(times) for name, times in take_turns(programs, rounds).items()}
