"""Shows groups of samples to a backend under several arms, through a journal that makes the run restartable.

A progress bar that counts tokens, with the time that is left.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from elastic_jax.errors import ConfigError, DataError
from elastic_jax.journal import Journal
from eval.harness.backends.base import Backend
from eval.harness.encoding import Encoder, make_prompt
from eval.harness.records import Record, lowest, new_record, record_key, refresh, valid_record, verdict_of
from eval.samples import Arm, Prompt, Reply, Sample, Showing, Verdict
from eval.tasks import Group

_WINDOW_TOKENS = 4_000_000
"""Prompt tokens that are held in memory at one time."""


@dataclass(frozen=True)
class Shard:
    """Part `index` of `count` about equal ones of the samples, for several processes that share an output folder."""

    index: int = 0
    count: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.index < self.count:
            raise ConfigError(f"shard is {self.index}/{self.count}; want 0 up to the count less one, such as 0/4.")

    @classmethod
    def parse(cls, text: str) -> Shard:
        """The shard that `part/parts` names, such as 0/4."""
        index, _, count = text.partition("/")
        if not (index.isdigit() and count.isdigit()):
            raise ConfigError(f"shard is {text!r}; want part/parts, such as 0/4.")
        return cls(int(index), int(count))

    def holds(self, uid: str) -> bool:
        return zlib.crc32(uid.encode()) % self.count == self.index


WHOLE = Shard()


@dataclass
class Outcome:
    """What a run could not finish: errors by key. A restart asks for these again."""

    errors: dict[str, str] = field(default_factory=dict)


def records_of(group: Group, label: str, journal: Journal) -> list[Record]:
    """The journal's records of a group under one arm, in the order of its samples and their showings."""
    shown = ((index, showing) for index in range(group.count) for showing in group.showings(index))
    found = (valid_record(group, index, showing, label, journal) for index, showing in shown)
    return [record for record in found if record is not None]


def pending(group: Group, label: str, journal: Journal, shard: Shard = WHOLE) -> dict[int, list[Showing]]:
    """Showings that are not in the journal under this arm, by number of the sample."""
    missing = {}
    for index, uid in enumerate(group.uids):
        if shard.holds(uid):
            todo = [s for s in group.showings(index) if valid_record(group, index, s, label, journal) is None]
            if todo:
                missing[index] = todo
    return missing


def measure(
    backend: Backend,
    encoder: Encoder | None,
    groups: Sequence[Group],
    arms: Sequence[Arm],
    journal: Journal,
    *,
    batch_tokens: int,
    limit: int | None = None,
    shard: Shard = WHOLE,
    outcome: Outcome | None = None,
) -> list[Record]:
    """Does what the journal lacks, each result on disk before the next; returns the records by group, arm and sample.

    Args:
        encoder: None if every template gives token ids.
        limit: most tokens of prompt and answer; by default what the backend can take.
        outcome: collects the errors of single samples.

    Raises:
        ConfigError: the backend cannot do what a task asks.
        DataError: the backend failed on every prompt of a row of them, so that going on is useless.
    """
    for group in groups:
        if group.task.kind not in backend.kinds:
            raise ConfigError(
                f"task {group.task.name} wants a backend that can {group.task.kind}; this one can "
                f"{', '.join(sorted(backend.kinds))}."
            )
    _check_keys(groups)
    refresh(backend, encoder, groups, arms, journal, limit)
    failures = _Failures(outcome or Outcome())
    labels = {arm: backend.label(arm) for arm in arms}
    todo = [(group, {arm: pending(group, labels[arm], journal, shard) for arm in arms}) for group in groups]
    windows = [(group, window) for group, missing in todo for window in _windows(group, missing)]
    left = sum(group.tokens * sum(map(len, one.values())) for group, missing in todo for one in missing.values())
    with token_progress(left) as advance:
        for group, window in windows:
            prompts = _prompts(group, window, encoder, lowest(limit, backend.max_tokens))
            for arm, label in labels.items():
                shown: list[Prompt] = []
                for (index, showing), (sample, prompt) in prompts.items():
                    if showing in window.get(arm, {}).get(index, ()):
                        if prompt is None:
                            skipped = Verdict({group.task.main_score: 0.0}, "too_long")
                            record = new_record(group.task, sample, showing, arm, skipped, None, Reply())
                            journal.append({record_key(sample.uid, showing, label): record})
                            advance(group.tokens)
                        else:
                            shown.append(prompt)
                for prompt, reply in backend.run(
                    group.task.kind, shown, arm, batch_tokens=batch_tokens, most_rows=group.count
                ):
                    key = record_key(prompt.sample.uid, prompt.showing, label)
                    if not failures.note(key, reply.error):
                        verdict = verdict_of(group.task, prompt.sample, prompt.showing, reply)
                        record = new_record(group.task, prompt.sample, prompt.showing, arm, verdict, prompt, reply)
                        journal.append({key: record})
                    advance(group.tokens)
    return [record for group in groups for label in labels.values() for record in records_of(group, label, journal)]


def _check_keys(groups: Sequence[Group]) -> None:
    """Two samples of one uid would share a result."""
    met: set[str] = set()
    for group in groups:
        for uid in group.uids:
            if uid in met:
                raise DataError(f"sample {uid} is there twice, and would have one result. Ask for each task once.")
            met.add(uid)


def first_prompts(groups: Sequence[Group], encoder: Encoder | None, limit: int | None = None) -> Iterator[Prompt]:
    """The first prompt of every group that is not skipped for its length: a look at what a run will show."""
    for group in groups:
        sample = group.build(0)
        showing = group.showings(0)[0]
        made = make_prompt(group.task.template(sample, showing), encoder, group.task.policy, limit, sample, showing)
        if made is not None:
            yield made


class _Failures:
    """Lists samples that failed, and gives up after too many in a row."""

    IN_A_ROW = 10

    def __init__(self, outcome: Outcome):
        self.outcome, self.in_a_row = outcome, 0

    def note(self, key: str, error: str | None) -> bool:
        if error is None:
            self.in_a_row = 0
            return False
        self.outcome.errors[key] = error
        self.in_a_row += 1
        if self.in_a_row >= self.IN_A_ROW:
            raise DataError(
                f"{self.in_a_row} samples in a row failed, the last with: {error}. What was finished is in the "
                "journal; the same command goes on from there."
            )
        return True


def _windows(group: Group, todo: dict[Arm, dict[int, list[Showing]]]) -> Iterator[dict[Arm, dict[int, list[Showing]]]]:
    """The pending samples of all arms, a few at a time, so that each is built once and memory stays bounded."""
    size = max(1, _WINDOW_TOKENS // max(1, group.tokens))
    indices = sorted({index for missing in todo.values() for index in missing})
    for start in range(0, len(indices), size):
        chosen = set(indices[start : start + size])
        yield {arm: {i: shown for i, shown in missing.items() if i in chosen} for arm, missing in todo.items()}


def _prompts(
    group: Group, window: dict[Arm, dict[int, list[Showing]]], encoder: Encoder | None, limit: int | None
) -> dict[tuple[int, Showing], tuple[Sample, Prompt | None]]:
    prompts = {}
    for index in sorted({index for missing in window.values() for index in missing}):
        sample = group.build(index)
        for showing in group.showings(index):
            if any(showing in missing.get(index, ()) for missing in window.values()):
                content = group.task.template(sample, showing)
                made = make_prompt(content, encoder, group.task.policy, limit, sample, showing)
                prompts[index, showing] = (sample, made)
    return prompts


@contextmanager
def token_progress(total: int) -> Iterator[Callable[[int], None]]:
    """Shows `total` tokens of work; the yielded function reports tokens done."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("tokens, elapsed"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns) as progress:
        task = progress.add_task("Evaluating", total=total)
        yield lambda tokens: progress.advance(task, tokens)
