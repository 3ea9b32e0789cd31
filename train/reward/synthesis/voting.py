"""Consistency majority voting: judgements of one answer by several models become a preference (arXiv 2510.06915).

Each model gives a score. The judgement of the most trusted model with the score that most models gave is chosen, the
others are rejected, those with the least company first.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from elastic_jax.errors import ConfigError, DataError

INVALID = -1
"""Score of a judgement that does not end with one."""

RELEASED_PRIORITY = ("nemotron-70b", "qwen-plus", "mdcure-70b", "qwen2.5-72b", "llama-3.3-70b")
"""The models of the released data, least trusted first."""

_SCORE = re.compile(r"Score:\s*(\d+)[\]*\s]*$")


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
        if self.min_consensus < 1 or (self.max_rejects is not None and self.max_rejects < 1):
            raise ConfigError(
                f"min_consensus is {self.min_consensus}, max_rejects {self.max_rejects}; want at least 1 of each."
            )
        if len(set(self.priority)) < len(self.priority):
            raise ConfigError(f"priority names a model twice: {', '.join(self.priority)}.")


@dataclass(frozen=True)
class Vote:
    """What several judgements of one answer come to."""

    chosen: str
    """Name of the model whose judgement is chosen."""
    rejected: tuple[str, ...]
    """Names of the others, the least consistent first."""
    scores: Mapping[str, int]
    sizes: tuple[int, ...]
    """Votes for each score, most first; judgements that cannot vote are not counted."""

    def objection(self, config: VotingConfig) -> str | None:
        """Why the record makes no preference; None if it makes one."""
        if not self.sizes:
            return "no judgement ends with a score"
        if self.sizes[0] < config.min_consensus:
            return f"fewer than {config.min_consensus} models agree"
        if config.drop_unanimous and self.sizes[0] == len(self.scores):
            return "all models agree"
        return None


def parse_score(judgement: str) -> int:
    """The whole number after `Score:` at the very end, brackets and asterisks aside; `INVALID` if there is none."""
    found = _SCORE.search(judgement)
    return int(found[1]) if found else INVALID


def vote(judgements: Mapping[str, str], config: VotingConfig) -> Vote:
    """Ranks the judgements of one answer by how many models gave the same score, then by priority.

    Args:
        judgements: text by name of the model.

    Raises:
        DataError: fewer than two judgements, or a model that the priority does not name.
    """
    unknown = sorted(judgements.keys() - set(config.priority))
    if unknown:
        raise DataError(
            f"the priority does not name {', '.join(unknown)}; it has {', '.join(config.priority) or 'none'}."
        )
    if len(judgements) < 2:
        raise DataError(f"{len(judgements)} judgements; want two or more to vote.")
    scores = {name: parse_score(text) for name, text in judgements.items()}
    votes = Counter(score for score in scores.values() if config.invalid_is_cluster or score != INVALID)
    ranked = sorted(scores, key=lambda name: (votes[scores[name]], config.priority.index(name)))
    rejected = tuple(ranked[:-1][: config.max_rejects])
    return Vote(ranked[-1], rejected, scores, tuple(sorted(votes.values(), reverse=True)))
