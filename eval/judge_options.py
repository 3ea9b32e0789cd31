"""Settings that the reward benchmarks share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from elastic_jax.errors import ConfigError
from eval.options import BenchmarkSettings

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
