"""`elastic-jax eval router`: what a router keeps of full attention, and what it saves."""

from __future__ import annotations

from collections.abc import Sequence

from eval.suites.router.settings import RouterReportSettings
from eval.verb import checked_settings, report_folder


def main(argv: Sequence[str]) -> int:
    """Compare full, all-sparse and routed attention: retrieval, loss, sparsity, prefill time."""
    settings = checked_settings(
        RouterReportSettings,
        argv,
        verb="eval router",
        summary=main.__doc__,
        check=lambda settings: report_folder(settings.out),
    )
    if settings is None:
        return 0
    from eval.suites.router.run import run_router_report

    out = report_folder(settings.out)
    run_router_report(settings, out)
    print(f"Report: {out / 'results.md'}")
    return 0
