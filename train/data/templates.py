"""Turns records into token ids: a plain continuation prompt or the tokenizer's chat template."""

from __future__ import annotations

from typing import Any, Literal

from elastic_jax.text.chat import answered_texts
from elastic_jax.text.tokens import encode_chat, encode_text
from train.data.records import CODE, ICL, SUMMARIZATION, Record

Template = Literal["raw", "chat", "mixed"]


def render(record: Record, template: Template, tokenizer: Any, *, index: int = 0) -> tuple[list[int], list[int]]:
    """Token ids of the prompt and of the answer.

    The prompt is what a model is given at inference, so for chat it ends with the assistant's header, which the
    routers then see in training and in use alike (the released training data leaves the header out).
    `mixed` renders even indices as chat, odd ones as raw.

    Raises:
        DataError: a chat template that rewrites earlier turns, or none at all.
    """
    chat = template == "chat" or (template == "mixed" and index % 2 == 0)
    if not chat:
        prompt, answer = _raw(record)
        return encode_text(tokenizer, prompt, begin=True), encode_text(tokenizer, answer, begin=False)
    turns = [{"role": "user", "content": _join(record, record.question)}]
    prompt, (whole,) = answered_texts(tokenizer, turns, [record.answer.strip("\n")])
    return encode_chat(tokenizer, prompt), encode_chat(tokenizer, whole.after(prompt))


def _join(record: Record, question: str) -> str:
    parts = [question, record.context] if record.is_prefix else [record.context, question]
    return "\n\n".join(part for part in parts if part)


def _raw(record: Record) -> tuple[str, str]:
    """Prompt and answer as plain text; the answer brings its own separator."""
    if record.task in (CODE, SUMMARIZATION) and not record.question:
        return record.context, record.answer
    answer = record.answer if record.answer[0].isspace() else " " + record.answer
    if record.task in (CODE, ICL):
        return _join(record, record.question), answer
    if record.task == SUMMARIZATION:
        return f"{_join(record, record.question)}\nSummary:", answer
    if record.is_prefix:
        return f"Question: {record.question}\n\n{record.context}\n\nAnswer:", answer
    return f"{record.context}\n\nQuestion: {record.question}\nAnswer:", answer
