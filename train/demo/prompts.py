"""Prompts made from what every Python has: its language reference and the sources of its standard library."""

from __future__ import annotations

import inspect
import textwrap
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PASS_KEY = "48237"
NEEDLE = f"The pass key of the blue gate is {PASS_KEY}."
QUESTION = "\n\nQuestion: What is the pass key of the blue gate?\nAnswer: The pass key of the blue gate is"
NEEDLE_DEPTH = 0.4
"""Share of the text before the needle: outside the first block and outside the local window of the sparse heads."""


@dataclass(frozen=True)
class Prompt:
    """A labelled prompt as token ids."""

    label: str
    ids: list[int]


def demo_prompts(tokenizer: PreTrainedTokenizerBase, tokens: int) -> tuple[Prompt, Prompt, Prompt]:
    """Pass-key question, prose to continue, code to continue; each close to `tokens` tokens long."""
    from pydoc_data.topics import topics

    def cut(text: str, budget: int) -> str:
        return str(tokenizer.decode(tokenizer.encode(text)[:budget]))

    haystack = cut(topics["types"], tokens - len(tokenizer.encode(NEEDLE + QUESTION)))
    place = haystack.index(". ", int(len(haystack) * NEEDLE_DEPTH)) + 2
    passkey = f"{haystack[:place]}{NEEDLE} {haystack[place:]}{QUESTION}"
    prompts = {
        "pass key": passkey,
        "prose": cut(topics["specialnames"], tokens),
        "code": cut(inspect.getsource(textwrap), tokens),
    }
    pass_key, prose, code = (Prompt(label, tokenizer.encode(text)) for label, text in prompts.items())
    return pass_key, prose, code
