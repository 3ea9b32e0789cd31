"""`elastic-jax eval heads`: ranks heads for `--head-scores` and `--forced-msr` of the other benchmarks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from elastic_jax.errors import ConfigError
from elastic_jax.settings import FilePath, check_filled, check_least
from eval.harness.settings import BenchmarkSettings, ViewName
from eval.verb import benchmark_verb

if TYPE_CHECKING:
    from eval.benchmark import Benchmark


@dataclass(frozen=True)
class HeadsSettings(BenchmarkSettings):
    """Probes for which the attention of heads is measured."""

    views: tuple[ViewName, ...] = ("full",)
    """Always full attention, under which heads are ranked."""
    tasks: tuple[Literal["passkey", "kv", "fact"], ...] = ("passkey", "kv", "fact")
    """Kinds of needles."""
    lengths: tuple[int, ...] = (1024,)
    """Tokens of prompt and answer together."""
    per_task: int = 10
    """Samples of each task at each length."""
    haystack: FilePath | None = None
    """Text file, or folder of *.txt, in which needles hide; by default Python's language reference."""

    def __post_init__(self) -> None:
        super().__post_init__()
        other = self.views != ("full",) or self.cache_bits or self.forced_msr or self.heads is not None
        if other or self.endpoint is not None:
            raise ConfigError(
                "eval heads looks at full attention; leave --views, --cache-bits, --forced-msr, --heads and --endpoint "
                "out."
            )
        check_least(self, 1, "lengths", "per_task")
        check_filled(self, "tasks")


def main(argv: Sequence[str]) -> int:
    """Rank heads by their attention to a needle while they answer; writes heads.json and a map."""
    return benchmark_verb(
        HeadsSettings,
        argv,
        heads_benchmark,
        verb="eval heads",
        summary=main.__doc__,
        further={"ranking": "heads.json"},
    )


def heads_benchmark(settings: HeadsSettings) -> Benchmark:
    """The benchmark that the settings describe."""
    from eval.benchmark import Benchmark
    from eval.harness.encoding import Encoder
    from eval.suites.haystack import Haystack, read_texts
    from eval.suites.routing.summary import heads_section
    from eval.suites.routing.tasks import head_groups
    from eval.tasks import Group

    digests: dict[str, str] = {}

    def groups(encoder: Encoder) -> Sequence[Group]:
        haystack = Haystack(read_texts(settings.haystack), encoder.tokenizer)
        digests["haystack"] = haystack.digest()
        count = settings.samples(settings.per_task)
        return head_groups(settings.tasks, sorted(settings.lengths), count, haystack, encoder, seed=settings.seed)

    return Benchmark(
        "eval heads",
        "Heads that retrieve",
        groups,
        ("length",),
        inputs=lambda: digests,
        method=(
            "The score of a head on a prompt is the share of its attention that lies on the needle while the answer is "
            "read in, mean over the answer's tokens, largest of the query heads of a KV head; that of the table is the "
            "best head's."
        ),
        notes=heads_section,
    )
