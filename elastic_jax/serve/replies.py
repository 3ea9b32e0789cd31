"""Answers in the JSON of the OpenAI protocol, whole or in chunks."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Sequence
from typing import Any

from elastic_jax.engine.requests import TokenLogprob
from elastic_jax.serve.answers import Piece
from elastic_jax.serve.protocol import Question


class Replies:
    """The replies to one question: they share a name and a time."""

    def __init__(self, question: Question, tokenizer: Any, model: str):
        self._question, self._tokenizer = question, tokenizer
        self._frame = {
            "id": ("chatcmpl-" if question.chat else "cmpl-") + secrets.token_hex(12),
            "created": int(time.time()),
            "model": model,
        }
        self._written = [0] * (question.answers * len(question.prompts))
        """Characters of the tokens of each answer with log-probabilities, told so far."""

    def whole(self, pieces: Sequence[Piece], usage: dict[str, Any]) -> dict[str, Any]:
        """The one reply with all answers."""
        choices = []
        for index in range(len(self._written)):
            own = [piece for piece in pieces if piece.index == index]
            text = "".join(piece.text for piece in own)
            logprobs = self._logprobs(index, [told for piece in own for told in piece.logprobs])
            content = {"message": {"role": "assistant", "content": text}} if self._question.chat else {"text": text}
            choices.append({"index": index, **content, "logprobs": logprobs, "finish_reason": own[-1].finish})
        kind = "chat.completion" if self._question.chat else "text_completion"
        return {**self._frame, "object": kind, "choices": choices, "usage": usage}

    def first(self) -> list[dict[str, Any]]:
        """The chunks before any text: of a chat, who speaks."""
        if not self._question.chat:
            return []
        speaker = {"role": "assistant", "content": ""}
        return [self._chunk(index, speaker, None, None) for index in range(len(self._written))]

    def piece(self, piece: Piece) -> dict[str, Any]:
        """The chunk with one piece of an answer."""
        logprobs = self._logprobs(piece.index, piece.logprobs) if piece.logprobs else None
        delta = {"content": piece.text} if piece.text or piece.logprobs else {}
        return self._chunk(piece.index, delta if self._question.chat else piece.text, logprobs, piece.finish)

    def last(self, usage: dict[str, Any]) -> list[dict[str, Any]]:
        """The chunk after all text: the usage, where it is asked for."""
        return [{**self._frame, "object": self._chunk_kind, "choices": [], "usage": usage}] if self._with_usage else []

    @property
    def _with_usage(self) -> bool:
        return self._question.usage_in_stream

    @property
    def _chunk_kind(self) -> str:
        return "chat.completion.chunk" if self._question.chat else "text_completion"

    def _chunk(self, index: int, content: Any, logprobs: Any, finish: str | None) -> dict[str, Any]:
        name = "delta" if self._question.chat else "text"
        choice = {"index": index, name: content, "logprobs": logprobs, "finish_reason": finish}
        usage = {"usage": None} if self._with_usage else {}
        return {**self._frame, "object": self._chunk_kind, "choices": [choice], **usage}

    def _logprobs(self, index: int, told: Sequence[tuple[int, TokenLogprob]]) -> dict[str, Any] | None:
        if self._question.top_logprobs is None:
            return None
        if self._question.chat:
            content = [
                self._entry(token, found.logprob)
                | {"top_logprobs": [self._entry(other, logprob) for other, logprob in found.most_likely]}
                for token, found in told
            ]
            return {"content": content}
        texts, offsets = [self._text(token) for token, _ in told], []
        for text in texts:
            offsets.append(self._written[index])
            self._written[index] += len(text)
        return {
            "tokens": texts,
            "token_logprobs": [found.logprob for _, found in told],
            "top_logprobs": [{self._text(other): value for other, value in found.most_likely} for _, found in told],
            "text_offset": offsets,
        }

    def _entry(self, token: int, logprob: float) -> dict[str, Any]:
        text = self._text(token)
        # of a part of a character, the tokenizer does not say the bytes
        whole = "\N{REPLACEMENT CHARACTER}" not in text
        return {"token": text, "logprob": logprob, "bytes": list(text.encode()) if whole else None}

    def _text(self, token: int) -> str:
        return str(self._tokenizer.decode([token]))


def event(value: dict[str, Any]) -> bytes:
    """A server-sent event."""
    return f"data: {json.dumps(value)}\n\n".encode()


LAST_EVENT = b"data: [DONE]\n\n"
"""What ends a stream that is whole."""
