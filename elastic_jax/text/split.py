"""The one rule that keeps training texts and evaluation texts apart."""

from __future__ import annotations

import zlib
from collections.abc import Iterable
from typing import Literal

Split = Literal["train", "evaluation"]


def split_of(name: str) -> Split:
    """The side on which a text file, a word, a person's name or a number written as text belongs.

    Training and evaluation both ask this function, so their material is disjoint whatever lists either of them draws
    from, on every machine. About one name in four is held out for evaluation.

    Args:
        name: for a file its name without the folders (`treasure_island.txt`); for a drawn value the value itself
            (`"Marta"`, `"48213"`).
    """
    return "evaluation" if zlib.crc32(name.encode()) % 4 == 0 else "train"


def on_side(names: Iterable[str], split: Split) -> tuple[str, ...]:
    """The names on one side, in their order."""
    return tuple(name for name in names if split_of(name) == split)
