"""Settings that the reward benchmarks share."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from elastic_jax.errors import ConfigError
from eval.harness.settings import BenchmarkSettings

if TYPE_CHECKING:
    from eval.benchmark import Benchmark
    from eval.harness.backends.reward import ElasticRewardBackend
    from eval.suites.rewardbench.asking import Ask


TWIN = "twin"
_LONGEST = 131_072


@dataclass(frozen=True)
class JudgeSettings(BenchmarkSettings):
    """Which records are put to the judge, and how."""

    data: str = TWIN
    """Folder with the benchmark's *.jsonl files, or `twin`: made-up records with known labels, nothing to download."""
    mode: Literal["compat", "strict"] = "strict"
    """compat: as the published evaluators, slips included; strict: both orders, last verdict, whole rankings only."""
    orders: Literal["official", "both", "best-first", "best-last"] | None = None
    """Order of the answers shown; by default official for compat and both (one order and its reverse) for strict."""
    max_new_tokens: int = 2048
    """Room for the judge's reply, in tokens."""
    lengths: tuple[int, ...] = (4096,)
    """Of the twin: tokens of its prompts."""
    records: int = 2
    """Of the twin: how many records of each kind at each length."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("max_new_tokens", "records"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; want at least 1.")
        if not self.lengths or not 0 < min(self.lengths) <= max(self.lengths) <= _LONGEST:
            raise ConfigError(f"lengths is {list(self.lengths)}; want one or more from 1 to {_LONGEST} tokens.")


def with_template[S: JudgeSettings](settings: S, ask: Ask) -> S:
    """The settings with the chat template on where it must be: a scalar reward is that of a conversation."""
    return dataclasses.replace(settings, chat=True) if ask == "reward" else settings


def run_judge(benchmark: Benchmark, settings: JudgeSettings, ask: Ask, out: Path, *, dry_run: bool) -> None:
    """Runs a reward benchmark with the judge that the settings name: a reward model for `ask="reward"`."""
    from eval.benchmark import run_benchmark

    backend = open_reward_backend(settings) if ask == "reward" and not dry_run else None
    run_benchmark(benchmark, settings, out, dry_run=dry_run, backend=backend)


def open_reward_backend(settings: BenchmarkSettings) -> ElasticRewardBackend:
    """The reward model that the settings name.

    Raises:
        ConfigError: settings that mean nothing for a scalar reward: an endpoint, or a smaller cache.
        CheckpointError: no checkpoint with a score head of one label.
    """
    if settings.endpoint is not None:
        raise ConfigError("an endpoint gives no scalar reward. Leave --endpoint out, or ask for a verdict.")
    if settings.cache_bits:
        raise ConfigError("a reward is read in one pass, without a cache. Leave --cache-bits out.")
    from elastic_jax.reward import ElasticRewardModel
    from eval.harness.backends.local import with_router_settings
    from eval.harness.backends.reward import ElasticRewardBackend

    source, router = settings.resolved()
    model = ElasticRewardModel.from_pretrained(source, dtype=settings.dtype, router=router)
    decoder = with_router_settings(
        model.decoder, pattern=settings.pattern, sink_blocks=settings.sink_blocks, local_blocks=settings.local_blocks
    )
    config = dataclasses.replace(model.config, router=decoder.config.router)
    return ElasticRewardBackend(ElasticRewardModel(decoder, model.score_head[...], config))
