"""The two reward benchmarks as a `Benchmark` each, with the official tables and further figures in the report."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from elastic_jax.errors import ConfigError
from elastic_jax.files import write_json, write_text
from eval.benchmark import Benchmark
from eval.harness.backends.base import Backend
from eval.harness.encoding import Encoder
from eval.harness.opening import compared_model, open_backend
from eval.harness.runner import Record
from eval.report.page import csv_text
from eval.suites.rewardbench import long, memory, plans
from eval.suites.rewardbench.asking import JudgePlan, Parsers, Prompting, judge_groups
from eval.suites.rewardbench.items import JudgeItem, official_orders
from eval.suites.rewardbench.page import figures_markdown, judge_figures
from eval.suites.rewardbench.results import Judged, join_rewards, official_results, read_verdicts
from eval.suites.rewardbench.settings import TWIN, JudgeSettings
from eval.suites.rewardbench.twins import long as long_twin
from eval.suites.rewardbench.twins import memory as memory_twin
from eval.tasks import Group

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Files = Mapping[str, Sequence[JudgeItem]]


@dataclass(frozen=True)
class JudgeSuite:
    """One reward benchmark: its records, how a judge is asked about them, and what is reported."""

    verb: str
    """Words of the command, such as `eval long-rewardbench`."""
    title: str
    read_folder: Callable[[Path], Files]
    """The published records in a folder."""
    make_twin: Callable[[int, Sequence[int], int, Callable[[str], int]], Files]
    """Makes records up. Takes the number of each kind, lengths in tokens, a seed, and a function that counts tokens."""
    prompt: Prompting
    parsers: Callable[[JudgeItem], Parsers]
    """Parsers of the replies; the first one gives the score in mode compat."""
    strict_parser: str
    """Name of the parser that gives the score in mode strict."""
    axes: tuple[str, ...]
    """Axes of the items by which results are broken down."""
    swap_axis: str
    """The axis by which the change of verdicts with the order is broken down."""
    official_rows: Callable[[Sequence[tuple[Mapping[str, str], float]]], list[dict[str, Any]]]
    """Rows of the published evaluator's table, from the axes and the score of every item."""
    method: str
    """How it is measured, for the report: Markdown."""
    rankings: bool = False
    """Some records ask for a ranking of several answers."""

    def plan(self, settings: JudgeSettings) -> JudgePlan:
        """How the judge is asked under these settings.

        Raises:
            ConfigError: a choice between two letters is asked for where records ask for rankings.
        """
        if settings.ask == "choice" and self.rankings:
            raise ConfigError(f"{self.title} asks for rankings too, which a choice between two letters cannot give.")
        compat = settings.mode == "compat"

        def parsers(item: JudgeItem) -> Parsers:
            found = self.parsers(item)
            return found if compat else {self.strict_parser: found[self.strict_parser], **found}

        return JudgePlan(
            self.prompt,
            parsers,
            settings.ask,
            settings.orders or ("official" if compat else "both"),
            policy="skip" if compat else "context",
            official_cut=compat,
            max_new_tokens=settings.max_new_tokens,
            seed=settings.seed,
        )

    def benchmark(self, settings: JudgeSettings) -> Benchmark:
        """The benchmark that the settings describe; with `ask="reward"`, for a `RewardBackend`.

        Raises:
            DataError: (when run) a folder without the benchmark's files, or a malformed record.
        """
        plan = self.plan(settings)
        run = _JudgeRun(self, settings, plan)
        return Benchmark(
            self.verb,
            f"{self.title}, {settings.mode}" + (", made-up records" if settings.data == TWIN else ""),
            run.groups,
            identity={"ask": plan.ask, "orders": plan.orders, "policy": plan.policy, "new_tokens": plan.max_new_tokens},
            method=self.method,
            join=run.joined if plan.ask == "reward" else None,
            notes=run.notes,
            refuse_too_long=False,
            open_backend=open_judge,
        )


def open_judge(settings: JudgeSettings, tokenizer: PreTrainedTokenizerBase) -> Backend:
    """The judge: a reward model for `ask="reward"`, else a language model or an endpoint.

    Raises:
        CheckpointError: no checkpoint with a score head of one label.
    """
    if settings.ask != "reward":
        return open_backend(settings, tokenizer)
    from elastic_jax.reward import ElasticRewardModel
    from eval.harness.backends.reward import ElasticRewardBackend

    source, router = settings.resolved()
    model = ElasticRewardModel.from_pretrained(
        source, dtype=settings.dtype, router=router, heads=settings.heads, msr=settings.msr
    )
    model.decoder.fresh_routers = model.decoder.fresh_routers and not settings.fresh_routers
    decoder = compared_model(model.decoder, settings)
    config = dataclasses.replace(model.config, router=decoder.config.router)
    return ElasticRewardBackend(ElasticRewardModel(decoder, model.score_head[...], config))


@dataclass
class _JudgeRun:
    """A run of a suite, with its records: they are read or made when the tokenizer is known."""

    suite: JudgeSuite
    settings: JudgeSettings
    plan: JudgePlan
    files: Files = field(default_factory=dict)

    def groups(self, encoder: Encoder) -> list[Group]:
        settings = self.settings
        if settings.data != TWIN:
            self.files = self.suite.read_folder(Path(settings.data))
        else:
            self.files = self.suite.make_twin(
                settings.records, settings.lengths, settings.seed, lambda text: len(encoder.ids(text))
            )
        # An endpoint takes messages, not token ids, so the official cut cannot be made for it.
        return judge_groups(self.files, self.plan, encoder if settings.endpoint is None else None, settings.limit)

    def joined(self, records: Sequence[Record]) -> Sequence[Record]:
        """Rankings made of the rewards of single answers."""
        orders = {
            items[index].uid: order
            for items in self.files.values()
            for index, order in official_orders([len(item.answers) for item in items])
        }
        return join_rewards(records, orders)

    def notes(self, records: Sequence[Record], out: Path) -> str:
        """Sections of the report; writes `judge.json` with all figures, and for every arm the official table."""
        figures: dict[str, dict[str, Any]] = {}
        for arm in dict.fromkeys(record["arm"] for record in records):
            verdicts = self._verdicts([record for record in records if record["arm"] == arm])
            figures[arm] = judge_figures(verdicts, self.suite.axes, self.suite.swap_axis)
            table = self.suite.official_rows(official_results(next(iter(verdicts.values()))))
            write_text(out / f"official-{re.sub('[^a-z0-9.+-]+', '-', arm.lower())}.csv", csv_text(table))
        write_json(out / "judge.json", figures)
        return "\n\n".join(figures_markdown(part, arm) for arm, part in figures.items())

    def _verdicts(self, records: Sequence[Record]) -> dict[str, list[Judged]]:
        """What each parser reads in the records; the first one gives the score."""
        items = {item.uid: item for made in self.files.values() for item in made}
        parsers = [self.plan.ask] if self.plan.ask != "verdict" else self.plan.parsers(next(iter(items.values())))
        return {parser: read_verdicts(items, records, parser) for parser in parsers}


def _rows_of(columns: Mapping[str, Mapping[str, float]]) -> list[dict[str, Any]]:
    names = next(iter(columns.values()))
    return [{"": name} | {column: values[name] for column, values in columns.items()} for name in names]


_OUR_WORDS = (
    "the judge's instructions are in our own words and decoding is greedy, so figures are close to, not the same as, "
    "published ones. `official-*.csv` "
)
LONG = JudgeSuite(
    "eval long-rewardbench",
    "Long-RewardBench",
    long.read_folder,
    long_twin.make_items,
    plans.answers,
    plans.answer_parsers,
    strict_parser="last",
    axes=("task", "tasktype", "subtype", "length"),
    swap_axis="task",
    official_rows=lambda results: [
        {"Task": name, "Value": value} for name, value in long.official_table(results).items()
    ],
    method=(
        f"Records, orders, parsers and tables follow Long-RewardBench (arXiv 2510.06915); {_OUR_WORDS}"
        "has the rows of the published evaluator. Mode compat: the official order, the first verdict found, "
        "rankings of any length, prompts of 131,072 tokens and more cut in the middle, longer than the model's "
        "window not shown. Mode strict: an order drawn from the record and its reverse, the last verdict, whole "
        "rankings only, and the long text shortened in the middle until the prompt fits. Scalar rewards: answers "
        "ranked by reward, of equal ones the first shown."
    ),
    rankings=True,
)
MEMORY = JudgeSuite(
    "eval memory-rewardbench",
    "MemoryRewardBench",
    memory.read_folder,
    memory_twin.make_items,
    plans.trajectories,
    plans.trajectory_parsers,
    strict_parser="last_tag",
    axes=("group", "setting", "criterion", "pattern", "source", "length"),
    swap_axis="setting",
    official_rows=lambda results: _rows_of(memory.official_table(results)),
    method=(
        f"Records, orders, parsers and tables follow MemoryRewardBench (arXiv 2601.11969); {_OUR_WORDS}"
        "has the columns of the published evaluator, with settings under the names of the paper. Mode compat: the"
        " official order and parser (a reply must begin with its verdict), prompts of 131,072 tokens and more cut"
        " in the middle, longer than the model's window not shown. Mode strict: an order drawn from the record "
        "and its reverse, the last verdict, and the long text shortened in the middle until the prompt fits. "
        "Choice: the likelier of the letters A and B after `[[`, instead of a written reply."
    ),
)
