"""`elastic-jax eval longbench`: LongBench, LongBench-E and LongBench v2 from their published files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from elastic_jax.cli.args import required
from elastic_jax.errors import ConfigError
from elastic_jax.settings import FilePath, check_least
from eval.harness.settings import BenchmarkSettings
from eval.verb import benchmark_verb

if TYPE_CHECKING:
    from eval.benchmark import Benchmark

E_TASKS = (
    "qasper multifieldqa_en hotpotqa 2wikimqa gov_report multi_news trec triviaqa samsum passage_count "
    "passage_retrieval_en lcc repobench-p"
).split()


@dataclass(frozen=True)
class LongBenchSettings(BenchmarkSettings):
    """Which of the three benchmarks, and where its files are."""

    data: FilePath | None = None
    """Folder of the published files (LongBench and -E: unpack the hub's data.zip), one of them, or for version 2 the
    data set on the hub: THUDM/LongBench-v2."""
    version: Literal["1", "e", "2"] = "1"
    """1: LongBench (21 tasks), e: LongBench-E (13 tasks, by number of words), 2: LongBench v2 (four-way questions)."""
    tasks: tuple[str, ...] = ()
    """Tasks of version 1 and e by their names; by default all."""
    max_tokens: int = 8192
    """Tokens of prompt and answer; longer prompts lose the middle of their text."""
    forced_choice: bool = False
    """Version 2: compare the likelihoods of the four letters; one pass, and no answer that cannot be read."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_least(self, 256, "max_tokens")
        if self.version == "2" and self.tasks:
            raise ConfigError("LongBench v2 has no tasks to choose from; leave --tasks out.")
        if self.version != "2" and self.forced_choice:
            raise ConfigError("forced_choice wants the four-way questions of version 2.")


def main(argv: Sequence[str]) -> int:
    """LongBench, LongBench-E and LongBench v2 from local files or the hub, under several ways to run attention."""
    return benchmark_verb(LongBenchSettings, argv, longbench_benchmark, verb="eval longbench", summary=main.__doc__)


def longbench_benchmark(settings: LongBenchSettings) -> Benchmark:
    """The benchmark that the settings describe.

    Raises:
        ConfigError: no data, or a task that LongBench does not have.
        DataError: files that cannot be used.
    """
    from eval.benchmark import Benchmark
    from eval.harness.encoding import Encoder
    from eval.suites.longbench.v1 import FORMS, longbench_groups
    from eval.suites.longbench.v2 import longbench_v2_group
    from eval.tasks import Group

    data = required(settings.data, "--data FOLDER", "data of the benchmark")
    limit, count = settings.max_tokens, settings.limit
    extended = settings.version == "e"

    def groups(_: Encoder) -> Sequence[Group]:
        if settings.version == "2":
            return [longbench_v2_group(data, forced=settings.forced_choice, count=count, tokens=limit)]
        tasks = settings.tasks or (tuple(E_TASKS) if extended else tuple(FORMS))
        return longbench_groups(data, tasks, extended=extended, count=count, tokens=limit)

    title = {"1": "LongBench", "e": "LongBench-E", "2": "LongBench v2"}[settings.version]
    axes = {"1": (), "e": ("words",), "2": ("difficulty", "size")}[settings.version]
    return Benchmark(
        "eval longbench", title, groups, axes, limit=limit, method=_METHOD, overall=settings.version == "2"
    )


_METHOD = (
    "Records are the published ones; prompts are in our own words, so that scores are close to, not the same as, "
    "published ones. A prompt that is too long loses the middle of its user message, counted in tokens of this model; "
    "the beginning and the end stay. Metrics are those of the benchmark: token F1, ROUGE-L (Chinese words by jieba), "
    "edit similarity, class names, numbers, the letter of the answer sentence; the best of several references counts. "
    "What a reply thinks before its answer is not scored, and one that ends while thinking scores 0. Decoding is "
    "greedy."
)
