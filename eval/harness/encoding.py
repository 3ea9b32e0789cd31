"""From a rendered sample to a prompt: chat template, token ids, and what to do when it is too long."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from elastic_jax.errors import DataError
from elastic_jax.text.chat import chat_text, check_template
from elastic_jax.text.tokens import encode_chat, encode_text
from eval.harness.thinking import opened_by
from eval.samples import Message, Prompt, Rendered, Sample, Segment, Showing, Tokens
from eval.tasks import LengthPolicy

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_ROUNDS = 8


class Encoder:
    """Turns words into tokens, in the model's chat template where `chat` is true and the sample allows it."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, *, chat: bool):
        if chat:
            check_template(tokenizer)
        self.tokenizer = tokenizer
        self.chat = chat

    def ids(self, text: str) -> list[int]:
        """Tokens of a text without any special ones."""
        return encode_text(self.tokenizer, text, begin=False)

    def encode(self, rendered: Rendered) -> list[int]:
        """Tokens of the whole prompt, the beginning of the reply included."""
        if self.chat and rendered.chat:
            turns = [{"role": message.role, "content": message.text} for message in rendered.messages]
            return encode_chat(self.tokenizer, chat_text(self.tokenizer, turns) + rendered.answer_prefix)
        text = "\n\n".join(message.text for message in rendered.messages)
        gap = " " if rendered.answer_prefix and not text[-1:].isspace() else ""
        return encode_text(self.tokenizer, f"{text}{gap}{rendered.answer_prefix}", begin=True)

    @cached_property
    def thinking_tag(self) -> str:
        """The tag with which the chat template ends a prompt, so that the reply begins inside its thinking; or ""."""
        return opened_by(chat_text(self.tokenizer, [{"role": "user", "content": ""}]).text) if self.chat else ""

    def cut(self, key: str, content: Rendered, policy: LengthPolicy, limit: int) -> tuple[Rendered, list[int]] | None:
        """Takes tokens out of the middle, by the policy, until the whole has at most `limit`; None if it cannot.

        Raises:
            DataError: the policy may not cut anything.
        """
        place = max(index for index, message in enumerate(content.messages) if message.role == "user")
        message = content.messages[place]
        segments = (Segment(message.text, cuttable=True),) if policy == "middle" else message.segments
        cuttable = [index for index, segment in enumerate(segments) if segment.cuttable]
        if not cuttable:
            raise DataError(f"sample {key} is longer than {limit} tokens and has no part that may be cut.")
        part = max(cuttable, key=lambda index: len(segments[index].text))
        part_ids = self.ids(segments[part].text)
        keep = len(part_ids) - (len(self.encode(content)) - limit)
        for _ in range(_ROUNDS):
            if keep < 1:
                break
            text = self.tokenizer.decode(middle_cut(part_ids, keep), skip_special_tokens=False)
            shortened = (*segments[:part], Segment(str(text), cuttable=True), *segments[part + 1 :])
            messages = (
                *content.messages[:place],
                Message(message.role, shortened),
                *content.messages[place + 1 :],
            )
            made = replace(content, messages=messages)
            ids = self.encode(made)
            if len(ids) <= limit:
                return made, ids
            keep -= len(ids) - limit
        return None


def make_prompt(
    content: Rendered | Tokens,
    encoder: Encoder | None,
    policy: LengthPolicy,
    limit: int | None,
    sample: Sample,
    showing: Showing,
) -> Prompt | None:
    """The prompt of one showing, at most `limit` tokens with its answer; None if it is longer, cut or not."""
    new = sample.max_new_tokens
    if isinstance(content, Tokens):
        made = Prompt(
            sample,
            content.prompt_ids,
            content.continuation_ids,
            parts=content.parts,
            option_ids=content.option_ids,
            max_new_tokens=new,
            thinking_tag=encoder.thinking_tag if encoder is not None and content.chat else "",
            showing=showing,
        )
        reserve = new + max(map(len, content.option_ids), default=0)
        return None if limit is not None and len(made) + reserve > limit else made
    assert encoder is not None
    options = tuple(tuple(encoder.ids(option)) for option in content.options)
    reserve = new + max(map(len, options), default=0)
    ids, cut = encoder.encode(content), 0
    if limit is not None and len(ids) + reserve > limit:
        if policy == "skip":
            return None
        before = len(ids)
        shortened = encoder.cut(sample.uid, content, policy, limit - reserve)
        if shortened is None:
            return None
        content, ids = shortened
        cut = before - len(ids)
    return Prompt(
        sample,
        np.asarray(ids, np.int32),
        continuation_ids=options[0] if len(options) == 1 else (),
        option_ids=options if len(options) > 1 else (),
        max_new_tokens=new,
        messages=content.messages,
        answer_prefix=content.answer_prefix,
        cut_tokens=cut,
        thinking_tag=encoder.thinking_tag if content.chat else "",
        showing=showing,
    )


def middle_cut(ids: Sequence[int], keep: int) -> list[int]:
    """The first half and the last half of `keep` ids, the odd one at the end."""
    if len(ids) <= keep:
        return list(ids)
    head = keep // 2
    return [*ids[:head], *ids[len(ids) - (keep - head) :]]
