"""Settings of the two reward benchmarks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from elastic_jax.errors import ConfigError
from elastic_jax.settings import FilePath, check_least
from eval.harness.settings import BenchmarkSettings

Ask = Literal["verdict", "choice", "reward"]
Mode = Literal["compat", "strict"]
Orders = Literal["official", "both", "best-first", "best-last"]
"""official: the one order of the published evaluators; both: an order drawn for the record, and its reverse; best-first
and best-last: by the true ranking."""

TWIN = "twin"
_LONGEST = 131_072


@dataclass(frozen=True)
class JudgeSettings(BenchmarkSettings):
    """Which records the judge is asked about, and how."""

    data: FilePath = TWIN
    """Folder with the benchmark's *.jsonl files, or `twin`: made-up records with known labels, nothing to download."""
    mode: Mode = "strict"
    """compat: as the published evaluators, slips included; strict: both orders, last verdict, whole rankings only."""
    orders: Orders | None = None
    """Order of the answers shown; by default official for compat and both (one order and its reverse) for strict."""
    max_new_tokens: int = 2048
    """Room for the judge's reply, in tokens."""
    lengths: tuple[int, ...] = (4096,)
    """Tokens of the prompts of made-up records (twin)."""
    records: int = 2
    """Made-up records (twin) of each kind at each length."""
    ask: Ask = "verdict"
    """verdict: a written reply, read by the parsers; choice: the likelier of A and B, one forward pass, no parsing;
    reward: the score of each answer by a reward model, in its chat template whether or not --chat is given."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_least(self, 1, "max_new_tokens", "records")
        if not self.lengths or not 0 < min(self.lengths) <= max(self.lengths) <= _LONGEST:
            raise ConfigError(f"lengths is {list(self.lengths)}; want one or more from 1 to {_LONGEST} tokens.")
        if self.ask == "reward":
            if self.endpoint is not None:
                raise ConfigError("an endpoint gives no scalar reward. Leave --endpoint out, or ask for a verdict.")
            if self.cache_bits:
                raise ConfigError("a reward is read in one pass, without a cache. Leave --cache-bits out.")
            object.__setattr__(self, "chat", True)  # a reward model scores conversations in its chat template
