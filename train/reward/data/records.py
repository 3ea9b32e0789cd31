"""The preference record: a conversation, a better answer and one or more worse ones.

On disk a record is one JSON object per line; see `train.reward.data.readers` for all forms that are read.

What became of the records of a data set: how many were left out, why, and how many were shortened.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Literal, cast

from elastic_jax.errors import DataError

Role = Literal["system", "user", "assistant"]
ROLES = ("system", "user", "assistant")


@dataclass(frozen=True)
class Message:
    """One turn of a conversation."""

    role: Role
    content: str

    def to_json(self) -> dict[str, str]:
        """The object that chat templates and files take."""
        return {"role": self.role, "content": self.content}


@dataclass(frozen=True)
class PreferenceRecord:
    """One comparison, before tokenisation."""

    prompt: tuple[Message, ...]
    """The conversation that the answers continue; it ends with a turn of the user."""
    chosen: str
    rejected: tuple[str, ...]
    """At least one; the order is that of use: with V rejected answers wanted, the first V are taken."""
    margin: float | None = None
    """How much better the chosen answer is, in units of the score; None where the record does not say."""
    context: str | None = None
    """The part of one message that may be shortened; None stands for the longest message."""
    kinds: tuple[str, ...] = ()
    """What is wrong with each rejected answer, for results by kind; empty where unknown."""
    where: str = field(default="", compare=False)
    """File and line, where it was read from one."""

    def to_json(self) -> dict[str, Any]:
        """The object that one line of a preference file holds."""
        line: dict[str, Any] = {
            "prompt": [message.to_json() for message in self.prompt],
            "chosen": self.chosen,
            "rejected": list(self.rejected),
        }
        for name, value in (("margin", self.margin), ("context", self.context), ("kinds", list(self.kinds) or None)):
            if value is not None:
                line[name] = value
        return line


@dataclass(frozen=True)
class JudgeRecord:
    """A judge's prompt and the judgement to learn (supervised)."""

    prompt: tuple[Message, ...]
    answer: str
    context: str | None = None
    """As in `PreferenceRecord`."""
    where: str = field(default="", compare=False)

    def to_json(self) -> dict[str, Any]:
        """The object that one line of a judge file holds."""
        line: dict[str, Any] = {"prompt": [message.to_json() for message in self.prompt], "answer": self.answer}
        return line if self.context is None else line | {"context": self.context}


def conversation(*turns: tuple[str, str]) -> tuple[Message, ...]:
    """Messages from (role, content) pairs."""
    return tuple(Message(cast(Role, role), content) for role, content in turns)


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

    def finish[R](self, kept: list[R], complaint: str) -> tuple[list[R], Tally]:
        """What was kept, and these counts.

        Raises:
            DataError: nothing was kept.
        """
        self.kept = len(kept)
        if not kept:
            raise DataError(f"{complaint}\n{self}")
        return kept, self

    def __str__(self) -> str:
        lines = [f"{self.kept} records"]
        lines += [f"  skipped {count}: {why} (first: {self.first[why]})" for why, count in self.skipped.most_common()]
        if self.cut:
            lines.append(f"  shortened {self.cut}: {self.cut_tokens} tokens of context cut")
        return "\n".join(lines)
