"""`elastic-jax eval long-rewardbench` and `eval memory-rewardbench`: how well a model judges answers and memories."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from eval.suites.rewardbench.settings import JudgeSettings
from eval.verb import benchmark_verb

if TYPE_CHECKING:
    from eval.benchmark import Benchmark


@dataclass(frozen=True)
class LongRewardBenchSettings(JudgeSettings):
    """`JudgeSettings` without `choice`, as some records ask for rankings."""

    ask: Literal["verdict", "reward"] = "verdict"
    """verdict: a written reply, read by the parsers; reward: the score of each answer by a reward model, in its chat
    template whether or not --chat is given."""


def long_rewardbench(argv: Sequence[str]) -> int:
    """Long-RewardBench: which of two answers to a long question is better, and how two to four of them rank."""
    return benchmark_verb(
        LongRewardBenchSettings, argv, _long, verb="eval long-rewardbench", summary=long_rewardbench.__doc__
    )


def memory_rewardbench(argv: Sequence[str]) -> int:
    """MemoryRewardBench: which of two memory trajectories over a long text is better, in ten settings."""
    return benchmark_verb(
        JudgeSettings, argv, _memory, verb="eval memory-rewardbench", summary=memory_rewardbench.__doc__
    )


def _long(settings: JudgeSettings) -> Benchmark:
    from eval.suites.rewardbench.run import LONG

    return LONG.benchmark(settings)


def _memory(settings: JudgeSettings) -> Benchmark:
    from eval.suites.rewardbench.run import MEMORY

    return MEMORY.benchmark(settings)
