"""`elastic-jax eval memory-rewardbench`: a judge's verdicts on pairs of memory trajectories."""

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

VERB = "eval memory-rewardbench"


@dataclass(frozen=True)
class MemoryRewardBenchSettings(JudgeSettings):
    """Which records, and how they are judged."""

    ask: Literal["verdict", "choice", "reward"] = "verdict"
    """verdict: a written reply, read by the parsers; choice: the likelier of A and B, one forward pass, no parsing;
    reward: the score of each answer by a reward model, in its chat template whether or not --chat is given."""


def main(argv: Sequence[str]) -> int:
    """MemoryRewardBench: which of two memory trajectories over a long text is better, in ten settings."""
    asked = parse_verb(MemoryRewardBenchSettings, split_commas(argv, *LISTS), verb=VERB, summary=str(main.__doc__))
    settings = with_template(asked.settings, asked.settings.ask)
    out = Path(required(settings.out, "--out FOLDER", "folder for the report"))

    run_judge(memory_rewardbench(settings, settings.ask), settings, settings.ask, out, dry_run=asked.dry_run)
    if not asked.dry_run:
        print(f"Report: {out / 'results.md'}")
    return 0


def memory_rewardbench(settings: JudgeSettings, ask: Ask = "verdict") -> Benchmark:
    """The benchmark that the settings describe; with `ask="reward"`, for a `RewardBackend`.

    Raises:
        DataError: (when run) a folder without the benchmark's files, or a malformed record.
    """
    from eval.harness.encoding import Encoder
    from eval.suites.rewardbench.memory import official_table, read_folder
    from eval.suites.rewardbench.page import columns_csv
    from eval.suites.rewardbench.plans import memory_plan
    from eval.suites.rewardbench.results import official_results
    from eval.suites.rewardbench.run import Files, JudgeReport, JudgeRun
    from eval.suites.rewardbench.twins import memory

    def files(encoder: Encoder) -> Files:
        if settings.data != TWIN:
            return read_folder(Path(settings.data))
        return memory.make_items(settings.records, settings.lengths, settings.seed, lambda text: len(encoder.ids(text)))

    plan = memory_plan(
        settings.mode,
        ask=ask,
        orders=settings.orders,
        max_new_tokens=settings.max_new_tokens,
        seed=settings.seed,
    )
    report = JudgeReport(
        axes=("group", "setting", "criterion", "pattern", "source", "length"),
        swap_axis="setting",
        official_csv=lambda judged: columns_csv(official_table(official_results(judged))),
    )
    run = JudgeRun(files, plan, report, token_ids=settings.endpoint is None)
    title = f"MemoryRewardBench, {settings.mode}" + (", made-up records" if settings.data == TWIN else "")
    return run.benchmark(VERB, title, limit=settings.limit, method=_METHOD)


_METHOD = (
    "Records, orders, parsers and tables follow MemoryRewardBench (arXiv 2601.11969); the judge's instructions are in "
    "our own words and decoding is greedy, so figures are close to, not the same as, published ones. `official-*.csv` "
    "has the columns of the published evaluator, with settings under the names of the paper. Mode compat: the official "
    "order and parser (a reply must begin with its verdict), prompts of 131,072 tokens and more cut in the middle, "
    "longer than the model's window not shown. Mode strict: an order drawn from the record and its reverse, the last "
    "verdict, and the long text shortened in the middle until the prompt fits. Choice: the likelier of the letters A "
    "and B after `[[`, instead of a written reply."
)
