"""Sizes of a serving engine."""

from __future__ import annotations

from dataclasses import dataclass

from elastic_jax.config.checks import check_whole
from elastic_jax.errors import ConfigError

MOST_STEP_TOKENS = 8
"""Queries of a row that decode attention takes at once."""


@dataclass(frozen=True)
class EngineConfig:
    """Sizes that are fixed when an engine starts, so that its programs are compiled once."""

    slots: int = 8
    """Rows that decode together; a request waits for a free one."""
    max_length: int = 4096
    """Tokens of a row at most, prompt and answer together."""
    pool_mib: float | None = None
    """Mebibytes for packed pages, shared by all rows; by default every slot can hold max_length tokens in full heads.
    A cache of 16 bits has no pages: each slot has max_length places."""
    step_tokens: int = 8
    """Tokens of a row that one step can read, 1 to 8: the newest and up to step_tokens - 1 drafts, or a piece of what
    follows a shared prefix."""
    flush_rows: int | None = None
    """Rows that pack a group between two steps at most, by default an eighth of the slots. More rows that are due sit
    a step out, so that what a row answers does not depend on the others."""

    def __post_init__(self) -> None:
        flush_rows = 1 if self.flush_rows is None else self.flush_rows
        check_whole(
            "engine",
            1,
            slots=self.slots,
            max_length=self.max_length,
            step_tokens=self.step_tokens,
            flush_rows=flush_rows,
        )
        if self.step_tokens > MOST_STEP_TOKENS:
            raise ConfigError(f"engine step_tokens is {self.step_tokens}; want 1 to {MOST_STEP_TOKENS}.")
        if self.pool_mib is not None and self.pool_mib <= 0:
            raise ConfigError(f"engine pool_mib is {self.pool_mib}; want more than 0.")

    @property
    def rows_per_flush(self) -> int:
        return min(self.flush_rows or -(-self.slots // 8), self.slots)
