"""Conversations as the text that a model's chat template makes of them.

The template alone decides what stands around the messages, the beginning-of-text token included: tokenise its text
without special tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from elastic_jax.errors import DataError

Turn = Mapping[str, str]
"""A message with its `role` and `content`."""


def check_template(tokenizer: Any) -> None:
    """Raises `DataError` for a tokenizer without chat template."""
    if not getattr(tokenizer, "chat_template", None):
        raise DataError(
            "The model has no chat template. Use an instruction-tuned model, put a chat_template.jinja beside its "
            "tokenizer.json, or ask for prompts without template (leave --chat out; data.template raw)."
        )


def chat_text(tokenizer: Any, turns: Sequence[Turn], *, thinking: bool = False) -> str:
    """The text of a conversation. Unless the assistant has the last word, it ends where the answer begins.

    Args:
        thinking: leave it to the template whether the model thinks before it answers; otherwise it does not.

    Raises:
        DataError: no chat template.
    """
    check_template(tokenizer)
    options = {} if thinking else {"enable_thinking": False}
    asks = turns[-1]["role"] != "assistant"
    return str(tokenizer.apply_chat_template(list(turns), tokenize=False, add_generation_prompt=asks, **options))


def answered_texts(tokenizer: Any, turns: Sequence[Turn], answers: Sequence[str]) -> tuple[str, list[str]]:
    """The text of a prompt, and of the conversation with each of the answers, which begins with that of the prompt.

    Raises:
        DataError: no chat template, or one that does not continue its prompt with the answer.
    """
    prompt = chat_text(tokenizer, turns)
    wholes = [chat_text(tokenizer, [*turns, {"role": "assistant", "content": answer}]) for answer in answers]
    if not all(whole.startswith(prompt) for whole in wholes):
        raise DataError("The chat template does not continue its own prompt with the answer. Use another template.")
    return prompt, wholes
