"""`elastic-jax bench cache`: what a quantised cache saves in bytes and time, and what it costs in quality."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from elastic_jax.cli.args import parse_verb, required
from elastic_jax.settings import settings_yaml
from eval.bench.settings import BenchCacheSettings


def main(argv: Sequence[str]) -> int:
    """Compare quantised caches with the plain one: bytes, decode speed, perplexity, retrieval."""
    asked = parse_verb(BenchCacheSettings, argv, verb="bench cache", summary=str(main.__doc__))
    settings = asked.settings
    out = Path(required(settings.out, "--out FOLDER", "folder for the report"))
    if asked.dry_run:
        print(settings_yaml(settings), end="")
        return 0

    from eval.bench.cache.run import run_cache_bench

    run_cache_bench(settings, out)
    print(f"Report: {out / 'cache.md'}")
    return 0
