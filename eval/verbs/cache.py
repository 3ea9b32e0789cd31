"""`elastic-jax bench cache`: what a quantised cache saves in bytes and time, and what it costs in quality."""

from __future__ import annotations

from collections.abc import Sequence

from eval.bench.settings import BenchCacheSettings
from eval.verb import checked_settings, report_folder


def main(argv: Sequence[str]) -> int:
    """Compare quantised caches with the plain one: bytes, decode speed, perplexity, retrieval."""
    settings = checked_settings(
        BenchCacheSettings,
        argv,
        verb="bench cache",
        summary=main.__doc__,
        check=lambda settings: report_folder(settings.out),
    )
    if settings is None:
        return 0
    from eval.bench.cache.run import run_cache_bench

    out = report_folder(settings.out)
    run_cache_bench(settings, out)
    print(f"Report: {out / 'cache.md'}")
    return 0
