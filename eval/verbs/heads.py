"""`elastic-jax eval heads`: which heads retrieve, for `--head-scores` with `--forced-msr` of the other benchmarks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from elastic_jax.cli.args import parse_verb, required
from elastic_jax.errors import ConfigError
from eval.harness.settings import LISTS, BenchmarkSettings, ViewName, split_commas


@dataclass(frozen=True)
class HeadsSettings(BenchmarkSettings):
    """Probes whose needles heads may look at."""

    views: tuple[ViewName, ...] = ("full",)
    """Heads are ranked by what they do under full attention."""
    tasks: tuple[Literal["passkey", "kv", "fact"], ...] = ("passkey", "kv", "fact")
    """Kinds of needles."""
    lengths: tuple[int, ...] = (1024,)
    """Tokens of prompt and answer together."""
    per_task: int = 10
    """Samples of each task at each length."""
    haystack: str | None = None
    """Text file, or folder of *.txt, in which needles hide; by default Python's language reference."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.views != ("full",) or self.cache_bits or self.endpoint is not None or self.forced_msr:
            raise ConfigError(
                "eval heads looks at full attention; leave --views, --cache-bits, --forced-msr and --endpoint out."
            )
        if not self.lengths or not self.tasks or self.per_task < 1:
            raise ConfigError("lengths and tasks want one value or more, per_task at least 1.")


def main(argv: Sequence[str]) -> int:
    """Rank heads by their attention to a needle while they answer; writes heads.json and a map."""
    asked = parse_verb(HeadsSettings, split_commas(argv, *LISTS), verb="eval heads", summary=str(main.__doc__))
    settings = asked.settings
    out = Path(required(settings.out, "--out FOLDER", "folder for the report"))

    from eval.benchmark import Benchmark, run_benchmark
    from eval.harness.encoding import Encoder
    from eval.suites.haystack import Haystack, read_texts
    from eval.suites.routing.summary import heads_section
    from eval.suites.routing.tasks import head_groups
    from eval.tasks import Group

    def groups(encoder: Encoder) -> Sequence[Group]:
        haystack = Haystack(read_texts(settings.haystack), encoder.tokenizer)
        count = settings.samples(settings.per_task)
        return head_groups(settings.tasks, sorted(settings.lengths), count, haystack, encoder, seed=settings.seed)

    benchmark = Benchmark(
        "eval heads",
        "Heads that retrieve",
        groups,
        ("length",),
        method=(
            "The score of a head on a prompt is the share of its attention that lies on the needle while the answer is "
            "read in, mean over the answer's tokens, largest of the query heads of a KV head; that of the table is the "
            "best head's."
        ),
        notes=heads_section,
    )
    run_benchmark(benchmark, settings, out, dry_run=asked.dry_run)
    if not asked.dry_run:
        print(f"Report: {out / 'results.md'}, ranking: {out / 'heads.json'}")
    return 0
