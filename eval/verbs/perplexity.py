"""`elastic-jax eval perplexity`: loss by position in long texts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from elastic_jax.errors import ConfigError
from elastic_jax.settings import FilePath, check_least
from eval.harness.settings import BenchmarkSettings
from eval.verb import benchmark_verb

if TYPE_CHECKING:
    from eval.benchmark import Benchmark


@dataclass(frozen=True)
class PerplexitySettings(BenchmarkSettings):
    """Windows of text, and where they come from."""

    lengths: tuple[int, ...] = (4096,)
    """Tokens of a window."""
    windows: int = 8
    """Windows of each kind of text at each length."""
    parts: int = 8
    """Equal parts of a window; the routers decide from the first, the others are scored."""
    texts: FilePath | None = None
    """Text file, or folder of *.txt, of at least the length of a window; by default Python's language reference."""
    code: FilePath | None = None
    """Folder of *.py sources, of which the evaluation split is used; by default the standard library."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_least(self, 1, "windows")
        check_least(self, 2, "parts")
        check_least(self, self.parts, "lengths")


def main(argv: Sequence[str]) -> int:
    """Perplexity by position in long prose and code; full, sparse, routed."""
    return benchmark_verb(PerplexitySettings, argv, perplexity_benchmark, verb="eval perplexity", summary=main.__doc__)


def perplexity_benchmark(settings: PerplexitySettings) -> Benchmark:
    """The benchmark that the settings describe."""
    if settings.cache_bits:
        raise ConfigError("perplexity is measured in one pass without a cache; leave --cache-bits out.")

    from eval.benchmark import Benchmark
    from eval.harness.encoding import Encoder
    from eval.suites.haystack import prose_and_code, read_texts
    from eval.suites.perplexity import positions_section, window_groups
    from eval.tasks import Group, perplexity_task

    digests: dict[str, str] = {}

    def groups(encoder: Encoder) -> Sequence[Group]:
        haystacks = prose_and_code(read_texts(settings.texts), settings.code, encoder.tokenizer)
        digests.update({name: haystack.digest() for name, haystack in haystacks.items()})
        return window_groups(
            perplexity_task,
            sorted(settings.lengths),
            settings.samples(settings.windows),
            haystacks,
            seed=settings.seed,
            prompt_tokens=lambda length: length // settings.parts,
            scored_parts=settings.parts - 1,
        )

    return Benchmark(
        "eval perplexity",
        "Perplexity by position",
        groups,
        ("length",),
        inputs=lambda: digests,
        identity={"parts": settings.parts},
        method="Windows are consecutive tokens of one text. Score: share of tokens that were the most likely ones.",
        notes=positions_section,
    )
