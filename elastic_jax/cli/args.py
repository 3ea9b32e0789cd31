"""The command line of one verb: `--config FILE`, one flag per setting, `--dry-run`."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from elastic_jax.errors import ConfigError
from elastic_jax.settings import load_settings


@dataclass(frozen=True)
class Invocation[T]:
    """What the user asked of a verb."""

    settings: T
    dry_run: bool


def parse_verb[T](cls: type[T], argv: Sequence[str], *, verb: str, summary: str) -> Invocation[T]:
    """Reads a verb's arguments: defaults of `cls`, then `--config`, then flags named like the fields (`--loss.weight`).

    Prints help or a usage error and raises `SystemExit` where the arguments ask for it. The docstrings of the fields
    of `cls` are the help texts and say units.

    Raises:
        ConfigError: the configuration file is missing or holds something that `cls` does not.
    """
    import tyro

    defaults = load_settings(cls, _config_of(argv))
    config_help = "YAML file or shipped recipe that sets the defaults."
    dry_run_help = "Check the settings, print them, and stop."
    command = dataclasses.make_dataclass(
        "Command",
        [
            ("settings", Annotated[cls, tyro.conf.arg(name="")]),
            ("config", Annotated[str | None, tyro.conf.arg(help=config_help)]),
            ("dry_run", Annotated[bool, tyro.conf.arg(help=dry_run_help)]),
        ],
        frozen=True,
    )
    parsed = tyro.cli(
        command,
        args=list(argv),
        prog=f"elastic-jax {verb}",
        description=summary,
        default=command(defaults, None, False),
        config=(tyro.conf.FlagCreatePairsOff,),
    )
    return Invocation(parsed.settings, parsed.dry_run)


def required[V](value: V | None, flag: str, meaning: str) -> V:
    """The value of a setting that has no sensible default.

    Raises:
        ConfigError: the user did not give it.
    """
    if value is None:
        raise ConfigError(f"no {meaning}: give it with {flag}, or in the file of --config.")
    return value


def _config_of(argv: Sequence[str]) -> str | None:
    for position, argument in enumerate(argv):
        if argument == "--config" and position + 1 < len(argv):
            return argv[position + 1]
        if argument.startswith("--config="):
            return argument.partition("=")[2]
    return None
