"""Settings of the two reward benchmarks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from elastic_jax.errors import ConfigError
from elastic_jax.settings import FilePath
from eval.harness.settings import BenchmarkSettings

Ask = Literal["verdict", "choice", "reward"]
Mode = Literal["compat", "strict"]
Orders = Literal["official", "both", "best-first", "best-last"]
"""The published evaluators' one order; one drawn from the record and its reverse; one that follows the truth."""

TWIN = "twin"
_LONGEST = 131_072


@dataclass(frozen=True)
class JudgeSettings(BenchmarkSettings):
    """Which records are put to the judge, and how."""

    data: FilePath = TWIN
    """Folder with the benchmark's *.jsonl files, or `twin`: made-up records with known labels, nothing to download."""
    mode: Mode = "strict"
    """compat: as the published evaluators, slips included; strict: both orders, last verdict, whole rankings only."""
    orders: Orders | None = None
    """Order of the answers shown; by default official for compat and both (one order and its reverse) for strict."""
    max_new_tokens: int = 2048
    """Room for the judge's reply, in tokens."""
    lengths: tuple[int, ...] = (4096,)
    """Of the twin: tokens of its prompts."""
    records: int = 2
    """Of the twin: how many records of each kind at each length."""
    ask: Ask = "verdict"
    """verdict: a written reply, read by the parsers; choice: the likelier of A and B, one forward pass, no parsing;
    reward: the score of each answer by a reward model, in its chat template whether or not --chat is given."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("max_new_tokens", "records"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; want at least 1.")
        if not self.lengths or not 0 < min(self.lengths) <= max(self.lengths) <= _LONGEST:
            raise ConfigError(f"lengths is {list(self.lengths)}; want one or more from 1 to {_LONGEST} tokens.")
        if self.ask == "reward":
            if self.endpoint is not None:
                raise ConfigError("an endpoint gives no scalar reward. Leave --endpoint out, or ask for a verdict.")
            if self.cache_bits:
                raise ConfigError("a reward is read in one pass, without a cache. Leave --cache-bits out.")
            object.__setattr__(self, "chat", True)  # a reward model scores conversations in its chat template
