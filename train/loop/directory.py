"""The run directory: who may use it, and the settings that it belongs to."""

from __future__ import annotations

import datetime
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np

from elastic_jax.errors import CheckpointError, ConfigError, shown
from elastic_jax.files import FileLock, remove_partial, write_text
from elastic_jax.settings import read_yaml, settings_dict, settings_yaml
from elastic_jax.text.chat import fix_date, template_date
from elastic_jax.weights.save import check_replaceable
from train.loop.distributed import is_main, wait_for_all

SETTINGS_FILE = "settings.yaml"
LOCK_FILE = ".lock"
FREE = {
    "run.directory",
    "run.save_every",
    "run.keep",
    "run.eval_every",
    "run.export",
    "run.nan_policy",
    "run.nan_limit",
    "run.profile",
    "run.compile_cache",
}
FREE_GROUPS = ("mesh.", "distributed.")
"""Settings that may change when a run goes on: they do not change the result of training."""


DATE = "run.date"
"""Not free, as it changes the data; but runs of earlier versions do not know it."""

_HELD: set[Path] = set()
"""Run directories that this process has claimed."""
_UNFINISHED = re.compile(rf"\{LOCK_FILE}|\.{SETTINGS_FILE}\.\w+\.partial|settings\.tmp")
"""What a run that was killed before its settings were written leaves behind; earlier versions wrote `settings.tmp`."""


def dated(config: Any, tokenizer: Any, directory: Path) -> Any:
    """The settings with the date that the tokenizer's chat template writes, which the tokenizer keeps from now on.

    It is the date of the settings, else that of the run in the directory, else today's, the same in all processes. The
    settings come back as they are where the template writes no date.
    """
    if (today := template_date(tokenizer)) is None:
        return config
    day = datetime.date.fromisoformat(config.run.date or _stored_date(directory / SETTINGS_FILE) or today)
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        day = datetime.date.fromordinal(int(multihost_utils.broadcast_one_to_all(np.int32(day.toordinal()))))
    fix_date(tokenizer, day.isoformat())
    return replace(config, run=replace(config.run, date=day.isoformat()))


def _stored_date(file: Path) -> str | None:
    """The date of the run whose settings are in the file; None without one, for runs of earlier versions as well."""
    run = read_yaml(file).get("run") if file.is_file() else None
    date = run.get("date") if isinstance(run, Mapping) else None
    try:
        return None if date is None else datetime.date.fromisoformat(str(date)).isoformat()
    except ValueError as error:
        raise ConfigError(f"{file}: run.date is {shown(date)}; want YYYY-MM-DD.") from error


@contextmanager
def claim(directory: Path, config: Any) -> Iterator[None]:
    """Keeps a run directory for this process; makes it, or checks that it belongs to the same settings.

    Of several processes of one run, the first holds it. What holds a directory already may claim it again.

    Raises:
        InUseError: another process trains in the directory.
        CheckpointError: the directory, or the folder of an export in it, holds something else.
        ConfigError: it holds a run with other settings; every changed field is named.
    """
    with _hold(directory, config) if is_main() and directory.resolve() not in _HELD else nullcontext():
        wait_for_all("run directory")
        file = directory / SETTINGS_FILE
        if not file.is_file():
            raise CheckpointError(
                f"{directory}: process 0 made it, this process does not see it. Use a shared directory."
            )
        refuse_changes(directory, read_yaml(file), config)
        yield


@contextmanager
def _hold(directory: Path, config: Any) -> Iterator[None]:
    """Locks a run directory and writes the settings there."""
    if {"[", "\\"} & {*str(directory.resolve())}:
        raise ConfigError(
            f"run.directory {directory} has a '[' or a backslash in its path, where Orbax writes checkpoints that it "
            "cannot read again. Choose another path."
        )
    foreign = CheckpointError(f"{directory} is not empty and holds no run. Choose a new --run.directory.")
    if directory.is_file():
        raise foreign
    directory.mkdir(parents=True, exist_ok=True)
    file, path = directory / SETTINGS_FILE, directory.resolve()
    with FileLock(directory / LOCK_FILE, directory):
        if file.is_file():
            refuse_changes(directory, read_yaml(file), config)
        elif any(not _UNFINISHED.fullmatch(entry.name) for entry in directory.iterdir()):
            raise foreign
        remove_partial(directory)
        for form in config.run.export:
            check_replaceable(directory / form)
        write_text(file, settings_yaml(config))
        _HELD.add(path)
        try:
            yield
        finally:
            _HELD.discard(path)


def refuse_changes(directory: Path, stored: Mapping[str, Any], config: Any) -> None:
    """Raises `ConfigError` if `config` would not go on with what `stored` began."""
    kept, now = dict(_leaves(stored)), dict(_leaves(settings_dict(config)))
    # settings that have come since the run began: their defaults are what was done before
    before = {name: value for name, value in _leaves(settings_dict(type(config)())) if name in now} | kept
    changed = [name for name in sorted(before.keys() | now.keys()) if before.get(name) != now.get(name)]
    changed = [name for name in changed if name not in FREE and not name.startswith(FREE_GROUPS)]
    if DATE not in kept:
        changed = [name for name in changed if name != DATE]
    if changed:
        listed = "\n".join(f"  {name}: was {before.get(name)!r}, now {now.get(name)!r}" for name in changed)
        raise ConfigError(
            f"{directory} holds a run with other settings:\n{listed}\n"
            "Set them back to go on with it, or choose a new --run.directory."
        )


def _leaves(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in settings.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            # earlier versions stored paths with their `~`
            expanded = os.path.expanduser(value) if isinstance(value, str) else value
            yield f"{prefix}{name}", list(expanded) if isinstance(expanded, tuple) else expanded
