"""The command line of one verb: `--config FILE`, one flag per setting, `--dry-run`."""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from elastic_jax.errors import ConfigError
from elastic_jax.settings import check_numbers, expand_home, load_settings

EXIT_OK = 0
EXIT_USAGE = 2
"""Wrong usage or input."""
EXIT_INCOMPLETE = 3
"""Done, but for some prompts or samples, which the output names."""
FREE_TEXT = ("--prompt", "--system")
"""Flags whose value is text of the user, which may look like anything."""
_FLAG = re.compile(r"-h|--[A-Za-z][\w.-]*(=.*)?", re.DOTALL)


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

    argv = _joined_text(argv)
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
        args=argv,
        prog=f"elastic-jax {verb}",
        description=summary,
        default=command(defaults, None, False),
        config=(tyro.conf.FlagCreatePairsOff,),
    )
    # tyro reads the word None as the absence of a value
    words = [f"{before}={after}" for before, after in zip(argv, argv[1:], strict=False)] + argv
    none = [
        flag[2:] for flag in FREE_TEXT if f"{flag}=None" in words and getattr(parsed.settings, flag[2:], "") is None
    ]
    settings = dataclasses.replace(parsed.settings, **dict.fromkeys(none, "None"))
    check_numbers(settings)
    return Invocation(expand_home(settings), parsed.dry_run)


def required[V](value: V | None, flag: str, meaning: str) -> V:
    """The value of a setting that has no sensible default.

    Raises:
        ConfigError: the user did not give it.
    """
    if value is None:
        raise ConfigError(f"no {meaning}: give it with {flag}, or in the file of --config.")
    return value


def _joined_text(argv: Sequence[str]) -> list[str]:
    """Arguments in which a text that starts with a dash is joined to its flag: `--prompt=-1 or 2?`.

    A single word with two dashes stays a flag of its own; as a text it is given as `--prompt=--word`.
    """
    joined: list[str] = []
    for argument in argv:
        if joined and joined[-1] in FREE_TEXT and argument.startswith("-") and not _FLAG.fullmatch(argument):
            joined[-1] += f"={argument}"
        else:
            joined.append(argument)
    return joined


def _config_of(argv: Sequence[str]) -> str | None:
    given = [after for before, after in itertools.pairwise(argv) if before == "--config"]
    given += [argument.partition("=")[2] for argument in argv if argument.startswith("--config=")]
    if len(given) > 1:
        raise ConfigError(f"--config is given {len(given)} times ({', '.join(given)}); put all settings into one file.")
    return given[0] if given else None
