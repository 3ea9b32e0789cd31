"""The reward benchmarks as benchmarks of the one runner: records in, official tables and figures out."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from elastic_jax.files import write_json, write_text
from eval.benchmark import Benchmark
from eval.harness.encoding import Encoder
from eval.harness.runner import Record
from eval.suites.rewardbench.asking import JudgePlan, judge_groups
from eval.suites.rewardbench.items import JudgeItem, official_orders
from eval.suites.rewardbench.page import figures_markdown, judge_figures
from eval.suites.rewardbench.results import Judged, join_rewards, read_verdicts
from eval.tasks import Group

Files = Mapping[str, Sequence[JudgeItem]]


@dataclass(frozen=True)
class JudgeReport:
    """What a benchmark reports beyond the scores by task."""

    axes: tuple[str, ...]
    swap_axis: str
    official_csv: Callable[[Sequence[Judged]], str]


class JudgeRun:
    """One benchmark with its records and its plan; the records are made when the tokenizer is known."""

    def __init__(self, files: Callable[[Encoder], Files], plan: JudgePlan, report: JudgeReport, *, token_ids: bool):
        """`token_ids`: the judge takes prompts as token ids, so that the official cut can be made."""
        self._make_files, self._plan, self._report, self._token_ids = files, plan, report, token_ids
        self._files: Files = {}

    def benchmark(self, verb: str, title: str, *, limit: int | None, method: str) -> Benchmark:
        """`limit`: at most so many records of each task and length."""

        def groups(encoder: Encoder) -> list[Group]:
            self._files = self._make_files(encoder)
            return judge_groups(self._files, self._plan, encoder if self._token_ids else None, limit)

        plan = self._plan
        return Benchmark(
            verb,
            title,
            groups,
            identity={"ask": plan.ask, "orders": plan.orders, "policy": plan.policy, "new_tokens": plan.max_new_tokens},
            method=method,
            join=self.joined,
            notes=self.notes,
            refuse_too_long=False,
        )

    def joined(self, records: Sequence[Record]) -> Sequence[Record]:
        """Records of rewards, put together to rankings; others as they are."""
        if self._plan.ask != "reward":
            return records
        orders = {
            items[index].uid: order
            for items in self._files.values()
            for index, order in official_orders([len(item.answers) for item in items])
        }
        return join_rewards(records, orders)

    def notes(self, records: Sequence[Record], out: Path) -> str:
        """Sections of the report; writes `judge.json` with all figures, and for every arm the official table."""
        by_arm = _by_arm(records)
        figures = {arm: self._figures(part) for arm, part in by_arm.items()}
        write_json(out / "judge.json", figures)
        for arm, part in by_arm.items():
            headline = next(iter(self._verdicts(part).values()))
            name = re.sub("[^a-z0-9.+-]+", "-", arm.lower())
            write_text(out / f"official-{name}.csv", self._report.official_csv(headline))
        return "\n\n".join(figures_markdown(part, arm) for arm, part in figures.items())

    def _figures(self, records: Sequence[Record]) -> dict[str, Any]:
        return judge_figures(self._verdicts(records), self._report.axes, self._report.swap_axis)

    def _verdicts(self, records: Sequence[Record]) -> dict[str, list[Judged]]:
        items = self._items()
        if self._plan.ask == "verdict":
            parsers = list(self._plan.parsers(next(iter(items.values()))))
        else:
            parsers = [self._plan.ask]
        return {parser: read_verdicts(items, records, parser) for parser in parsers}

    def _items(self) -> dict[str, JudgeItem]:
        return {item.uid: item for items in self._files.values() for item in items}


def _by_arm(records: Sequence[Record]) -> dict[str, list[Record]]:
    by_arm: dict[str, list[Record]] = {}
    for record in records:
        by_arm.setdefault(record["arm"], []).append(record)
    return by_arm
