"""Settings of `eval router`."""

from __future__ import annotations

from dataclasses import dataclass

from elastic_jax.cli.model import ModelSettings
from elastic_jax.errors import ConfigError
from elastic_jax.settings import FilePath, check_least
from eval.harness.settings import refuse_doubles


@dataclass(frozen=True)
class RouterReportSettings(ModelSettings):
    """Which texts, how many samples, and where the report goes."""

    out: FilePath | None = None
    """Folder of the report and of the journal; give the same folder again to go on after an interruption."""
    texts: FilePath | None = None
    """Folder of *.txt prose, of which the evaluation split is used; by default Python's language reference."""
    code: FilePath | None = None
    """Folder of *.py sources, of which the evaluation split is used; by default the standard library."""
    lengths: tuple[int, ...] = (1024, 2048, 4096)
    """Tokens of the prompts and of the windows of running text."""
    probes: int = 50
    """Retrieval prompts of each kind (pass key, key-value, fact) at each length."""
    windows: int = 16
    """Windows of prose, and of code, at each length."""
    scored_tokens: int = 512
    """Tokens at the end of each window whose loss is measured."""
    distractors: int = 1
    """Needles in each retrieval prompt that the question is not about."""
    limit: int | None = None
    """At most this many samples of each kind at each length, for a quick look."""
    batch_tokens: int = 4096
    """Tokens of one forward pass, at least one prompt; bounds the memory."""
    sink_blocks: int | None = None
    """Blocks at the start that sparse heads see; by default the router's own."""
    local_blocks: int | None = None
    """Blocks up to the token's own that sparse heads see; by default the router's own."""
    seed: int = 0
    """Chooses texts, needles and their places."""

    def __post_init__(self) -> None:
        refuse_doubles(self)
        check_least(self, 2, "lengths")
        if not 0 < self.scored_tokens < min(self.lengths):
            raise ConfigError(
                f"scored_tokens is {self.scored_tokens}; want 1 to {min(self.lengths) - 1}, "
                "so that the shortest window has a prompt too."
            )
        check_least(self, 1, "probes", "windows", "batch_tokens", "limit")
        check_least(self, 0, "distractors")

    def samples(self, wanted: int) -> int:
        """How many samples `limit` leaves of those wanted."""
        return wanted if self.limit is None else min(wanted, self.limit)
