"""What became of the records of a data set: how many were left out, why, and how many were shortened."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field


@dataclass
class Tally:
    """Counts while records are read and tokenised; the text of it goes to the user."""

    kept: int = 0
    skipped: Counter[str] = field(default_factory=Counter)
    """By reason."""
    first: dict[str, str] = field(default_factory=dict)
    """The first record skipped for each reason: file and line, or its number."""
    cut: int = 0
    """Prompts whose context was shortened."""
    cut_tokens: int = 0

    def skip(self, reason: str, where: str) -> None:
        """Counts a record, or a rejected answer, that is left out."""
        self.skipped[reason] += 1
        self.first.setdefault(reason, where)

    def __str__(self) -> str:
        lines = [f"{self.kept} records"]
        lines += [f"  skipped {count}: {why} (first: {self.first[why]})" for why, count in self.skipped.most_common()]
        if self.cut:
            lines.append(f"  shortened {self.cut}: {self.cut_tokens} tokens of context cut")
        return "\n".join(lines)
