"""Where figures come from: the command that repeats them, versions, commit, machine."""

from __future__ import annotations

import dataclasses
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import jax


def command_line(verb: str, settings: Any) -> str:
    """What repeats the run, with folders by their last name: where they are is this machine's affair."""
    words = [f"elastic-jax {verb}"]
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        if value != field.default:
            values = value if isinstance(value, tuple) else (value,)
            shown = [
                v if isinstance(v, str) and "://" in v else Path(v).name if isinstance(v, str) else str(v)
                for v in values
            ]
            flag = f"--{field.name.replace('_', '-')}"
            words += [flag] if value is True else [flag, *shown]
    return " ".join(words)


def program() -> dict[str, str]:
    """What the figures were measured with."""
    commit = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=Path(__file__).parent, capture_output=True, text=True, check=False
    ).stdout.strip()
    return {
        "elastic_jax": metadata.version("elastic-jax"),
        "commit": commit or "not in a git checkout",
        "jax": jax.__version__,
        "device": f"{jax.devices()[0].device_kind} ({platform.machine()})",
    }
