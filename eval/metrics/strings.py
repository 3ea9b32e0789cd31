"""RULER's string-match metrics (arXiv 2404.06654): are the references, word for word, in the reply?"""

from __future__ import annotations

import re
from collections.abc import Sequence

_CONTROL = re.compile(r"[\x00-\x1f]")


def cleaned(reply: str) -> str:
    """The reply as RULER compares it: control characters as line breaks, no blanks around."""
    return _CONTROL.sub("\n", reply.strip()).strip()


def match_all(reply: str, references: Sequence[str]) -> float:
    """Share of the references that the reply contains, whatever the case."""
    said = cleaned(reply).lower()
    return sum(reference.lower() in said for reference in references) / len(references)


def match_any(reply: str, references: Sequence[str]) -> float:
    """1 if the reply contains any of the references, whatever the case."""
    said = cleaned(reply).lower()
    return float(any(reference.lower() in said for reference in references))
