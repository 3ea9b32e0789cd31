"""Consistency majority voting: judgements of one answer by several models become a preference (arXiv 2510.06915).

Each model gives a score. The judgement of the most trusted model with the score that most models gave is chosen, the
others are rejected, those with the least company first.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from elastic_jax.errors import DataError
from train.reward.synthesis.settings import VotingConfig

INVALID = -1
"""Score of a judgement that does not end with one."""

_SCORE = re.compile(r"Score:\s*(\d+)[\]*\s]*$")


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
