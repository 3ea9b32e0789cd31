"""Reads the shipped tables of tile sizes. Without a valid table, a rule of thumb gives the tiles."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from functools import cache
from importlib import resources
from typing import Any

Table = dict[str, dict[str, Any]]
"""Entries by kernel and head dim."""

logger = logging.getLogger(__name__)


def read_table(package: str, name: str, is_entry: Callable[[Any], bool]) -> Table:
    """The table `tile_tables/NAME.json` of a package; empty where there is none, or, with a warning, a damaged one."""
    file = resources.files(package) / "tile_tables" / f"{name}.json"
    if not file.is_file():
        return {}
    try:
        table = json.loads(file.read_text(encoding="utf-8"))
        if all(is_entry(entry) for by_head_dim in table.values() for entry in by_head_dim.values()):
            return table
    except (OSError, ValueError, AttributeError, RecursionError):
        pass
    logger.warning("%s is damaged; tiles follow a rule of thumb. Install the package again.", file)
    return {}


@cache
def warn_of_unknown_chip(chip: str) -> None:
    """Warns once that there are no tiles for this chip."""
    logger.warning("%s is unknown here; tiles follow a rule of thumb and may be slow.", chip)
