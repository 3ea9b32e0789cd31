"""Scores groups of samples under several views, batch by batch, through a journal that makes it restartable."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from eval.journal import Journal
from eval.scoring import Sample, Scorer, View


@dataclass(frozen=True)
class Group:
    """Samples of one task at one length, built only when they have to be scored."""

    task: str
    length: int
    """Tokens to which every sample is padded."""
    width: int
    """Continuation tokens to which every sample is padded."""
    count: int
    build: Callable[[int], Sample]
    """Makes sample number 0 ... count - 1."""


@dataclass(frozen=True)
class Work:
    """A view to score under, and the name under which its results are kept.

    The label of routed attention carries a digest of the router, so that another router leaves the baselines valid
    and never reads the results of this one.
    """

    view: View
    label: str


def record_key(group: Group, index: int, work: Work) -> str:
    return f"{group.task}/{group.length}/{index}/{work.label}"


def pending(group: Group, work: Work, journal: Journal) -> list[int]:
    """Numbers of the samples whose score is not in the journal yet."""
    return [index for index in range(group.count) if record_key(group, index, work) not in journal]


def pending_tokens(groups: Sequence[Group], works: Sequence[Work], journal: Journal) -> int:
    return sum(len(pending(group, work, journal)) * group.length for group in groups for work in works)


def run_groups(
    scorer: Scorer, groups: Sequence[Group], works: Sequence[Work], journal: Journal, *, batch_tokens: int
) -> Iterator[int]:
    """Scores what the journal lacks; yields the tokens of each finished batch, after its results are on disk.

    `batch_tokens` bounds rows x length of a forward pass (one row at least).
    """
    for group in groups:
        rows = min(max(1, batch_tokens // group.length), group.count)
        for work in works:
            todo = pending(group, work, journal)
            for start in range(0, len(todo), rows):
                batch = todo[start : start + rows]
                samples = [group.build(index) for index in batch]
                scores = scorer.score(samples, work.view, tokens=group.length, rows=rows, width=group.width)
                keys = [record_key(group, index, work) for index in batch]
                journal.append({key: score.to_json() for key, score in zip(keys, scores, strict=True)})
                yield len(batch) * group.length
