"""`elastic-jax eval long-rewardbench`: a judge's verdicts and rankings on long questions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from elastic_jax.cli.args import parse_verb, required
from eval.harness.settings import LISTS, split_commas
from eval.suites.rewardbench.settings import TWIN, JudgeSettings, run_judge, with_template

if TYPE_CHECKING:
    from eval.benchmark import Benchmark
    from eval.suites.rewardbench.asking import Ask

VERB = "eval long-rewardbench"


@dataclass(frozen=True)
class LongRewardBenchSettings(JudgeSettings):
    """Which records, and how they are judged."""

    ask: Literal["verdict", "reward"] = "verdict"
    """verdict: a written reply, read by the parsers; reward: the score of each answer by a reward model, in its chat
    template whether or not --chat is given."""


def main(argv: Sequence[str]) -> int:
    """Long-RewardBench: which of two answers to a long question is better, and how two to four of them rank."""
    asked = parse_verb(LongRewardBenchSettings, split_commas(argv, *LISTS), verb=VERB, summary=str(main.__doc__))
    settings = with_template(asked.settings, asked.settings.ask)
    out = Path(required(settings.out, "--out FOLDER", "folder for the report"))

    run_judge(long_rewardbench(settings, settings.ask), settings, settings.ask, out, dry_run=asked.dry_run)
    if not asked.dry_run:
        print(f"Report: {out / 'results.md'}")
    return 0


def long_rewardbench(settings: JudgeSettings, ask: Ask = "verdict") -> Benchmark:
    """The benchmark that the settings describe; with `ask="reward"`, for a `RewardBackend`.

    Raises:
        DataError: (when run) a folder without the benchmark's files, or a malformed record.
    """
    from eval.harness.encoding import Encoder
    from eval.suites.rewardbench.long import official_table, read_folder
    from eval.suites.rewardbench.page import rows_csv
    from eval.suites.rewardbench.plans import long_plan
    from eval.suites.rewardbench.results import official_results
    from eval.suites.rewardbench.run import Files, JudgeReport, JudgeRun
    from eval.suites.rewardbench.twins import long

    def files(encoder: Encoder) -> Files:
        if settings.data != TWIN:
            return read_folder(Path(settings.data))
        return long.make_items(settings.records, settings.lengths, settings.seed, lambda text: len(encoder.ids(text)))

    plan = long_plan(
        settings.mode,
        ask=ask,
        orders=settings.orders,
        max_new_tokens=settings.max_new_tokens,
        seed=settings.seed,
    )
    report = JudgeReport(
        axes=("task", "tasktype", "subtype", "length"),
        swap_axis="task",
        official_csv=lambda judged: rows_csv(official_table(official_results(judged))),
    )
    run = JudgeRun(files, plan, report, token_ids=settings.endpoint is None)
    title = f"Long-RewardBench, {settings.mode}" + (", made-up records" if settings.data == TWIN else "")
    return run.benchmark(VERB, title, limit=settings.limit, method=_METHOD)


_METHOD = (
    "Records, orders, parsers and tables follow Long-RewardBench (arXiv 2510.06915); the judge's instructions are in "
    "our own words and decoding is greedy, so figures are close to, not the same as, published ones. `official-*.csv` "
    "has the rows of the published evaluator. Mode compat: the official order, the first verdict found, rankings of "
    "any length, prompts of 131,072 tokens and more cut in the middle, longer than the model's window not shown. Mode "
    "strict: an order drawn from the record and its reverse, the last verdict, whole rankings only, and the long text "
    "shortened in the middle until the prompt fits. Scalar rewards: answers ranked by reward, of equal ones the first "
    "shown."
)
