"""Token ids of conversations and their answers, and how over-long prompts are cut.

A conversation's ids are those of its whole text, so that training sees what evaluation
and other programs see; where a token reaches over the border of prompt and answer, it counts as part of the answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from elastic_jax.errors import DataError
from elastic_jax.text.chat import answered_texts, chat_text
from elastic_jax.text.tokens import encode_chat, encode_chat_offsets
from train.reward.data.records import Message


class Encoded(NamedTuple):
    """A prompt and its answers. `prompt_ids` followed by one of `answer_ids` is a whole conversation."""

    prompt_ids: np.ndarray
    """`[n]` int32."""
    answer_ids: tuple[np.ndarray, ...]
    context: tuple[int, int]
    """First and last + 1 of the prompt's tokens that may be cut."""


def encode(tokenizer: Any, prompt: Sequence[Message], answers: Sequence[str], context: str | None) -> Encoded:
    """Tokens of one prompt with each of its answers.

    Args:
        context: the part of a message that may be cut; None for the longest message.

    Raises:
        DataError: no chat template, one that fails or does not continue its prompt with the answer, or a context that
            the templated prompt does not have.
    """
    head, wholes = answered_texts(tokenizer, [message.to_json() for message in prompt], answers)
    encoded = encode_chat_offsets(tokenizer, head)
    rows = [np.array(encode_chat(tokenizer, whole), np.int32) for whole in wholes]
    shared = np.array(encoded.ids, np.int32)
    for row in rows:
        shared = shared[: _common(shared, row)]
    offsets = np.array(encoded.offsets)[: len(shared)]
    return Encoded(shared, tuple(row[len(shared) :] for row in rows), _token_span(head.text, prompt, context, offsets))


def prompt_tokens(tokenizer: Any, prompt: Sequence[Message]) -> int:
    """Tokens of a prompt up to where the answer begins.

    Raises:
        DataError: no chat template.
    """
    head = chat_text(tokenizer, [message.to_json() for message in prompt])
    return len(encode_chat(tokenizer, head))


def cut_context(encoded: Encoded, limit: int) -> np.ndarray | None:
    """The prompt's ids without as many of the context's middle as it takes to have `limit`; None if that cannot be."""
    excess = len(encoded.prompt_ids) - limit
    if excess <= 0:
        return encoded.prompt_ids
    first, end = encoded.context
    keep = end - first - excess
    if keep < 1:
        return None
    head = first + keep // 2
    return np.concatenate([encoded.prompt_ids[:head], encoded.prompt_ids[head + excess :]])


def _token_span(head: str, prompt: Sequence[Message], context: str | None, offsets: np.ndarray) -> tuple[int, int]:
    part = (context or max((message.content for message in prompt), key=len)).strip()
    start = head.find(part)
    if start < 0:
        raise DataError(f"the context {part[:40]!r}... is not in the prompt that the chat template makes.")
    inside = np.flatnonzero((offsets[:, 0] >= start) & (offsets[:, 1] <= start + len(part)))
    return (int(inside[0]), int(inside[-1]) + 1) if len(inside) else (0, 0)


def _common(left: np.ndarray, right: np.ndarray) -> int:
    """How many ids the two begin with alike."""
    size = min(len(left), len(right))
    different = np.flatnonzero(left[:size] != right[:size])
    return int(different[0]) if len(different) else size
