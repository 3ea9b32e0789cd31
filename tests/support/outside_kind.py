"""What the fuzz tests know of a kind of outside file."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple


class Kind(NamedTuple):
    """One kind of outside file: `write(folder)` makes valid ones, `damaged` is the one to change, `parse(folder)` reads
    them."""

    write: Callable[[Path], object]
    damaged: str
    parse: Callable[[Path], object]
    form: str
    """json, jsonl, yaml or bytes: what a change applies to; text is also changed byte by byte."""
    tolerant: bool = False
    """What cannot be read is dropped, as a kill may have cut it."""
    most: int = 1_000_000
    """Copies that one process tries at most, where a reader leaves something behind (Orbax a thread)."""


def dump(file: str, value: Any) -> Callable[[Path], object]:
    return lambda folder: (folder / file).write_text(json.dumps(value), encoding="utf-8")


def lines(file: str, *records: Any) -> Callable[[Path], object]:
    return lambda folder: (folder / file).write_text("".join(json.dumps(r) + "\n" for r in records), encoding="utf-8")
