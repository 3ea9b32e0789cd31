"""`elastic-jax eval router`: what a router keeps of full attention, and what it saves."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from elastic_jax.cli.args import parse_verb, required
from elastic_jax.settings import settings_yaml
from eval.suites.router.settings import RouterReportSettings


def main(argv: Sequence[str]) -> int:
    """Compare full, all-sparse and routed attention: retrieval, loss, sparsity, prefill time."""
    asked = parse_verb(RouterReportSettings, argv, verb="eval router", summary=str(main.__doc__))
    settings = asked.settings
    out = Path(required(settings.out, "--out FOLDER", "folder for the report"))
    if asked.dry_run:
        print(settings_yaml(settings), end="")
        return 0

    from eval.suites.router.run import run_router_report

    run_router_report(settings, out)
    print(f"Report: {out / 'results.md'}")
    return 0
