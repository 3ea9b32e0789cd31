"""`elastic-jax eval ruler`: the 13 tasks of RULER at any length, under several ways to run attention and cache."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from elastic_jax.settings import FilePath, check_least
from eval.harness.settings import BenchmarkSettings
from eval.verb import benchmark_verb

if TYPE_CHECKING:
    from eval.benchmark import Benchmark


@dataclass(frozen=True)
class RulerSettings(BenchmarkSettings):
    """Which tasks at which lengths."""

    tasks: tuple[str, ...] = ()
    """Tasks by RULER's names, such as niah_single_1 vt; by default all whose data is there."""
    lengths: tuple[int, ...] = (4096,)
    """Tokens of prompt and answer together."""
    per_task: int = 25
    """Samples of each task at each length; the published results have 500."""
    haystack: FilePath | None = None
    """Text file, or folder of *.txt, in which needles hide; by default Python's language reference."""
    qa_1: FilePath | None = None
    """SQuAD file (JSON) for task qa_1."""
    qa_2: FilePath | None = None
    """HotpotQA or SQuAD file (JSON) for task qa_2."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_least(self, 1, "lengths", "per_task")


def main(argv: Sequence[str]) -> int:
    """RULER: retrieval, tracking, counting and questions at any length; full, sparse, routed, small caches."""
    return benchmark_verb(RulerSettings, argv, ruler_benchmark, verb="eval ruler", summary=main.__doc__)


def ruler_benchmark(settings: RulerSettings) -> Benchmark:
    """The benchmark that the settings describe.

    Raises:
        ConfigError: a task that RULER does not have.
        DataError: a question file that cannot be used.
    """
    from functools import cache

    from eval.benchmark import Benchmark
    from eval.harness.encoding import Encoder
    from eval.harness.provenance import text_digest
    from eval.suites.haystack import read_texts
    from eval.suites.ruler.niah import FORMS, Essay
    from eval.suites.ruler.questions import read_questions
    from eval.suites.ruler.tasks import TASKS, RulerSources, family, ruler_groups
    from eval.tasks import Group

    files = {"qa_1": settings.qa_1, "qa_2": settings.qa_2}
    questions = {name: read_questions(path) for name, path in files.items() if path is not None}
    tasks = settings.tasks or tuple(name for name in TASKS if family(name) != "qa" or name in questions)

    @cache
    def essay() -> Essay:
        return Essay(list(read_texts(settings.haystack).values()))

    def inputs() -> Mapping[str, str]:
        digests = {name: text_digest(repr(questions[name])) for name in tasks if name in questions}
        if any(name in FORMS and FORMS[name].haystack == "essay" for name in tasks):
            digests["haystack"] = text_digest(*essay().words)
        return digests

    def groups(encoder: Encoder) -> Sequence[Group]:
        sources = RulerSources(encoder, essay, questions, settings.seed)
        return ruler_groups(tasks, sorted(settings.lengths), settings.samples(settings.per_task), sources)

    return Benchmark("eval ruler", "RULER", groups, ("length",), method=_METHOD, inputs=inputs)


_METHOD = (
    "Prompts are made anew from the published description of RULER (arXiv 2404.06654), in our own words, to fit each "
    "length with this tokenizer, room for the answer included; figures are close to, not the same as, those of the "
    "original files. Words are our own lists, with made-up ones where a list is longer. Score: share of the "
    "references that the reply contains, whatever the case (qa: any of them). Decoding is greedy. The routers decide "
    "once, from the prompt."
)
