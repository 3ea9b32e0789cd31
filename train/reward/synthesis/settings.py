"""Settings of `elastic-jax train synthesise`; field docstrings are the command's help texts."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from elastic_jax import smollm2
from elastic_jax.errors import ConfigError
from elastic_jax.settings import FilePath, check_least, check_seed


@dataclass(frozen=True)
class VotingConfig:
    """Which votes become preferences. The released data was made with min_consensus 1 and invalid_is_cluster."""

    priority: tuple[str, ...] = ()
    """Models from the least to the most trusted one; decides between judgements with equally many votes."""
    min_consensus: int = 2
    """Fewest models that must give the chosen score."""
    drop_unanimous: bool = False
    """Leave out records that all models score alike: their preferences are between styles only."""
    invalid_is_cluster: bool = False
    """Let judgements without a score vote for each other, so that one of them can be chosen."""
    max_rejects: int | None = None
    """Most rejected judgements that are kept."""

    def __post_init__(self) -> None:
        check_least(self, 1, "min_consensus", "max_rejects")
        if len(set(self.priority)) < len(self.priority):
            raise ConfigError(f"priority names a model twice: {', '.join(self.priority)}.")


@dataclass(frozen=True)
class SynthesisSettings:
    """What is made of which samples."""

    samples: FilePath | None = None
    """JSON-lines, Parquet or Arrow file: perspective, question, response, chunks, and judgement or judgements."""
    out: FilePath | None = None
    """JSON-lines file to write; an interrupted run goes on with the same command."""
    stage: Literal["long", "prompts"] = "long"
    """prompts: what to ask a strong judge about the short texts; long: the training data, once it has answered."""
    model: FilePath = smollm2.NAME
    """Model whose tokenizer and chat template count tokens: directory or hub id, .gguf file, or smollm2."""
    filler: FilePath | None = None
    """Folder of .txt files that irrelevant text is cut from; by default the texts that Python itself brings along."""
    target_tokens: tuple[int, ...] = (32768,)
    """Lengths of prompt and judgement together, in tokens; each sample draws one."""
    reserve: int = 1024
    """Tokens of these that are kept for the judgement."""
    chunk_tokens: int = 512
    """Most tokens of one piece of filler."""
    voting: VotingConfig = field(default_factory=VotingConfig)
    """How several judgements become a preference."""
    seed: int = 0
    """Chooses lengths, places and filler."""

    def __post_init__(self) -> None:
        if not self.target_tokens or min(self.target_tokens) <= self.reserve or self.reserve < 0:
            raise ConfigError(
                f"target_tokens is {list(self.target_tokens)}, reserve {self.reserve}; want one length or more, each "
                "longer than the reserve."
            )
        check_least(self, 16, "chunk_tokens")
        check_seed(self.seed, bits=63)
