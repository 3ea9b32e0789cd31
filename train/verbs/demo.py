"""`elastic-jax demo`: settings and command line of the demonstration."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from elastic_jax.cli.args import parse_verb
from elastic_jax.files import FileLock
from elastic_jax.settings import settings_yaml
from train.demo.settings import DemoSettings


def main(argv: Sequence[str]) -> int:
    """See a small model route different prompts, answer, train its routers and save: minutes on a CPU, no network."""
    asked = parse_verb(DemoSettings, argv, verb="demo", summary=str(main.__doc__))
    if asked.dry_run:
        print(settings_yaml(asked.settings), end="")
        return 0

    from train.demo.tour import take_tour

    out = Path(asked.settings.out)
    out.mkdir(parents=True, exist_ok=True)
    with FileLock(out / ".lock", out):
        take_tour(asked.settings)
    return 0
