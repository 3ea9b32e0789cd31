"""What the runner asks of a backend."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

from eval.samples import Arm, Kind, Prompt, Reply


class Backend(Protocol):
    """A model, wherever it runs."""

    kinds: frozenset[Kind]
    """What it can be asked."""
    max_tokens: int | None
    """Most tokens of prompt and answer together; None where unknown."""

    def identity(self) -> dict[str, Any]:
        """What results depend on; kept in the journal's header, and a run with another one is refused."""
        ...

    def label(self, arm: Arm) -> str:
        """Names an arm in journal keys: its name, and a digest of what only this arm depends on."""
        ...

    def run(
        self, kind: Kind, prompts: Sequence[Prompt], arm: Arm, *, batch_tokens: int, most_rows: int
    ) -> Iterator[tuple[Prompt, Reply]]:
        """Replies in any order, each as soon as it is there.

        Args:
            batch_tokens: bounds rows x padded length of what runs at one time, one row at least.
            most_rows: no batch needs more rows; the same number in every run, so that shapes repeat.
        """
        ...
