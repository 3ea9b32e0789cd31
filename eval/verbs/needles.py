"""`elastic-jax eval needles`: pass key, key-value and fact at every depth of a text of every length."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from elastic_jax.errors import ConfigError
from elastic_jax.settings import FilePath, check_filled, check_least
from eval.harness.settings import BenchmarkSettings
from eval.verb import benchmark_verb

if TYPE_CHECKING:
    from eval.benchmark import Benchmark


@dataclass(frozen=True)
class NeedlesSettings(BenchmarkSettings):
    """The grid, and how answers are judged."""

    tasks: tuple[Literal["passkey", "kv", "fact"], ...] = ("passkey", "kv", "fact")
    """What is hidden: the pass key of a door, the secret word of a person, a person's place of birth."""
    lengths: tuple[int, ...] = (1024, 2048, 4096)
    """Tokens of prompt and answer together."""
    depths: tuple[int, ...] = (0, 25, 50, 75, 100)
    """Where the needle lies, in percent of the way from the beginning of the text to the question."""
    per_cell: int = 5
    """Samples of each task at each depth and length."""
    distractors: int = 1
    """Needles in each prompt that the question is not about."""
    haystack: FilePath | None = None
    """Text file, or folder of *.txt, in which needles hide; by default Python's language reference."""
    generate: bool = False
    """Write the answer and look for it in the reply; by default the known answer is scored, in one pass: does greedy
    decoding write it word for word?"""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_least(self, 1, "lengths", "per_cell")
        check_least(self, 0, "distractors")
        check_filled(self, "tasks")
        if not self.depths or not 0 <= min(self.depths) <= max(self.depths) <= 100:
            raise ConfigError(f"depths is {list(self.depths)}; want percentages from 0 to 100.")


def main(argv: Sequence[str]) -> int:
    """Depth x length maps of what is found in a long text; full, sparse, routed, small caches."""
    return benchmark_verb(NeedlesSettings, argv, needles_benchmark, verb="eval needles", summary=main.__doc__)


def needles_benchmark(settings: NeedlesSettings) -> Benchmark:
    """The benchmark that the settings describe."""
    from eval.benchmark import Benchmark
    from eval.harness.encoding import Encoder
    from eval.suites.haystack import Haystack, read_texts
    from eval.suites.needles import NEW_TOKENS, probe_groups, scored_answer, written_answer
    from eval.suites.probes import ProbeConfig
    from eval.tasks import Group

    digests: dict[str, str] = {}

    def groups(encoder: Encoder) -> Sequence[Group]:
        haystack = Haystack(read_texts(settings.haystack), encoder.tokenizer)
        digests["haystack"] = haystack.digest()
        return probe_groups(
            written_answer if settings.generate else scored_answer,
            settings.tasks,
            sorted(settings.lengths),
            settings.samples(settings.per_cell),
            haystack,
            encoder.tokenizer,
            ProbeConfig(sink_tokens=0, local_tokens=0, distractors=settings.distractors, seed=settings.seed),
            depths=settings.depths,
            new_tokens=NEW_TOKENS if settings.generate else 0,
        )

    return Benchmark(
        "eval needles",
        "Needles by depth and length",
        groups,
        ("length", "depth"),
        inputs=lambda: digests,
        method=_METHOD,
    )


_METHOD = (
    "One sentence in an excerpt of real text states a pass key, a secret word or a place of birth, others state the "
    "same of something else, and the question follows at the end; the same excerpts at every depth. Needles may lie "
    "where sparse heads see them. Score `exact`: every token of the answer is the most likely one, which is when "
    "greedy decoding writes it; `match`: the reply contains the answer."
)
