"""Runs judges that need no model over made-up records, through the real runner."""

from __future__ import annotations

import random
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from elastic_jax.journal import Journal
from eval.harness.backends.base import Backend
from eval.harness.backends.scripted import ScriptedBackend
from eval.harness.runner import measure
from eval.samples import ENDPOINT_ARM, Prompt
from eval.suites.rewardbench.asking import JudgePlan, judge_groups
from eval.suites.rewardbench.items import JudgeItem


class WordEncoder:
    """Counts every four characters as a token: enough for judges that read the messages."""

    thinking_tag = ""

    def ids(self, text):
        return [0] * (len(text) // 4)

    def encode(self, rendered):
        return self.ids("".join(message.text for message in rendered.messages))


def run_judge(
    files: Mapping[str, Sequence[JudgeItem]],
    plan: JudgePlan,
    backend: Backend,
    path: Path,
    *,
    encoder=None,
    limit: int | None = None,
    window: int | None = None,
) -> list[dict]:
    """The records of a whole run."""
    encoder = encoder or WordEncoder()
    groups = judge_groups(files, plan, encoder, limit)
    with Journal(path, {}) as journal:
        return measure(backend, encoder, groups, [ENDPOINT_ARM], journal, batch_tokens=4096, limit=window)


def shown_answers(prompt: Prompt) -> list[str]:
    item = prompt.sample.fields["item"]
    return [item.answers[rank] for rank in prompt.showing.order]


def verdict_text(prompt: Prompt, ranks: Sequence[int]) -> str:
    """A reply that gives these ranks to the answers shown, in the form asked for."""
    letters = sorted("ABCD"[: len(ranks)], key=lambda letter: ranks["ABCD".index(letter)])
    return f"[[{'>'.join(letters)}]]" if prompt.sample.fields["item"].ranking else f"[[{letters[0]}]]"


def judge(name: str, ranks: Callable[[Prompt], Sequence[int]]) -> ScriptedBackend:
    return ScriptedBackend(name, lambda prompt: verdict_text(prompt, ranks(prompt)))


def random_ranks(prompt: Prompt) -> list[int]:
    ranks = list(range(len(prompt.showing.order)))
    random.Random(zlib.crc32(f"{prompt.sample.uid}{prompt.showing.label}".encode())).shuffle(ranks)
    return ranks


def in_shown_order(prompt: Prompt) -> list[int]:
    return list(range(len(prompt.showing.order)))
