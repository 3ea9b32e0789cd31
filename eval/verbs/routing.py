"""`elastic-jax eval routing`: what routers choose for each kind of prompt, and how similar tasks look to them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from elastic_jax.errors import ConfigError
from elastic_jax.settings import FilePath, check_least
from eval.harness.settings import BenchmarkSettings, ViewName
from eval.verb import benchmark_verb

if TYPE_CHECKING:
    from eval.benchmark import Benchmark


@dataclass(frozen=True)
class RoutingSettings(BenchmarkSettings):
    """Prompts to route."""

    views: tuple[ViewName, ...] = ("elastic",)
    """Always routed attention, the only one that has decisions to look at."""
    lengths: tuple[int, ...] = (1024, 2048)
    """Tokens of a prompt."""
    per_task: int = 20
    """Prompts of each kind at each length."""
    haystack: FilePath | None = None
    """Text file, or folder of *.txt; by default Python's language reference."""
    code: FilePath | None = None
    """Folder of *.py sources, of which the evaluation split is used; by default the standard library."""
    records: FilePath | None = None
    """JSON lines with context, question and metadata.task, instead of probes and running text; cut to the last of
    --lengths."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.views != ("elastic",) or self.cache_bits or self.endpoint is not None or self.heads is not None:
            raise ConfigError(
                "eval routing looks into the routers; leave --views, --cache-bits, --heads and --endpoint out."
            )
        check_least(self, 1, "lengths", "per_task")


def main(argv: Sequence[str]) -> int:
    """Routing by task: MSR, ESR, heat map of heads, similarity of tasks before and after the task MLP."""
    return benchmark_verb(RoutingSettings, argv, routing_benchmark, verb="eval routing", summary=main.__doc__)


def routing_benchmark(settings: RoutingSettings) -> Benchmark:
    """The benchmark that the settings describe."""
    from eval.benchmark import Benchmark
    from eval.harness.encoding import Encoder
    from eval.suites.haystack import prose_and_code, read_texts
    from eval.suites.routing.summary import routing_section
    from eval.suites.routing.tasks import record_groups, routing_groups
    from eval.tasks import Group

    count, longest = settings.samples(settings.per_task), max(settings.lengths)

    digests: dict[str, str] = {}

    def groups(encoder: Encoder) -> Sequence[Group]:
        if settings.records is not None:
            return record_groups(settings.records, count, tokens=longest)
        haystacks = prose_and_code(read_texts(settings.haystack), settings.code, encoder.tokenizer)
        digests.update({name: haystack.digest() for name, haystack in haystacks.items()})
        return routing_groups(sorted(settings.lengths), count, haystacks, encoder, seed=settings.seed)

    return Benchmark(
        "eval routing",
        "Routing by task",
        groups,
        ("length",),
        inputs=lambda: digests,
        limit=longest if settings.records is not None else None,
        method="Each prompt is read once; the score is its MSR, the share of (layer, KV head) pairs that run sparse.",
        notes=routing_section,
    )
