"""The run directory: who may use it, and the settings that it belongs to."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from elastic_jax.errors import CheckpointError, ConfigError
from elastic_jax.settings import read_yaml, settings_dict, settings_yaml
from train.loop.distributed import is_main, wait_for_all

SETTINGS_FILE = "settings.yaml"
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
"""Settings that may change when a run goes on: they do not touch what is learnt."""


def claim(directory: Path, config: Any) -> None:
    """Makes a new run directory, or checks that an existing one belongs to the same settings.

    Raises:
        CheckpointError: the directory holds something else.
        ConfigError: it holds a run with other settings; every changed field is named.
    """
    file = directory / SETTINGS_FILE
    if is_main():
        if file.is_file():
            refuse_changes(directory, read_yaml(file), config)
        elif directory.exists() and (directory.is_file() or any(directory.iterdir())):
            raise CheckpointError(f"{directory} is not empty and holds no run. Choose a new --run.directory.")
        directory.mkdir(parents=True, exist_ok=True)
        draft = file.with_suffix(".tmp")
        draft.write_text(settings_yaml(config), encoding="utf-8")
        draft.replace(file)
    wait_for_all("run directory")
    if not file.is_file():
        raise CheckpointError(f"{directory}: process 0 made it, this process does not see it. Use a shared directory.")
    refuse_changes(directory, read_yaml(file), config)


def refuse_changes(directory: Path, stored: Mapping[str, Any], config: Any) -> None:
    """Raises `ConfigError` if `config` would not go on with what `stored` began."""
    before, now = dict(_leaves(stored)), dict(_leaves(settings_dict(config)))
    changed = [name for name in sorted(before.keys() | now.keys()) if before.get(name) != now.get(name)]
    changed = [name for name in changed if name not in FREE and not name.startswith(FREE_GROUPS)]
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
            yield f"{prefix}{name}", list(value) if isinstance(value, tuple) else value
