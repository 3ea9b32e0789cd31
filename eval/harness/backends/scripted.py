"""Backends that need no model: an oracle, a coin, a judge that always says the same."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from eval.harness.thinking import with_opening
from eval.samples import Arm, Kind, Prompt, Reply


class ScriptedBackend:
    """Answers by calling a function, to check tasks, metrics and reports without a model.

    `answer` sees the prompt with its sample and showing and returns a reply, or the text of one.
    """

    kinds: frozenset[Kind] = frozenset(("generate", "score", "choose", "reward"))

    def __init__(self, name: str, answer: Callable[[Prompt], Reply | str], *, max_tokens: int | None = None):
        self.name = name
        self.max_tokens = max_tokens
        self._answer = answer

    def identity(self) -> dict[str, Any]:
        return {"backend": self.name}

    def label(self, arm: Arm) -> str:
        return arm.name

    def run(
        self, kind: Kind, prompts: Sequence[Prompt], arm: Arm, *, batch_tokens: int, most_rows: int
    ) -> Iterator[tuple[Prompt, Reply]]:
        for prompt in prompts:
            said = self._answer(prompt)
            reply = Reply(said) if isinstance(said, str) else said
            yield prompt, dataclasses.replace(reply, text=with_opening(prompt.thinking_tag, reply.text))
