"""Replies of models that think first: only what follows the thinking is an answer."""

from __future__ import annotations

import re

_OPENING = re.compile(r"<think(?:ing)?>|\[THINK\]|◁think▷|<\|begin_of_thought\|>")
_CLOSING = re.compile(r"</think(?:ing)?>|\[/THINK\]|◁/think▷|<\|end_of_thought\|>")


def answer_of(reply: str) -> str:
    """The reply without its thinking: what follows the last closing tag, up to thinking that is not closed."""
    return _OPENING.split(_CLOSING.split(reply)[-1])[0]


def thinks_to_the_end(reply: str) -> bool:
    """Whether the reply ended inside its thinking, before any answer."""
    rest = _CLOSING.split(reply)[-1]
    return bool(_OPENING.match(rest.lstrip()))


def is_thinking_tag(token: str) -> bool:
    """Whether a token of a tokenizer opens or closes thinking."""
    return bool(_OPENING.fullmatch(token) or _CLOSING.fullmatch(token))


def opened_by(prompt: str) -> str:
    """The tag with which a prompt has the model begin to think; an empty text if the prompt does not end with one."""
    tags = list(_OPENING.finditer(prompt))
    return tags[-1].group() if tags and not prompt[tags[-1].end() :].strip() else ""


def with_opening(opened: str, reply: str) -> str:
    """The reply to a prompt that ends with the tag `opened`, with that tag: so it says itself what is thinking."""
    return reply if not opened or _OPENING.match(reply.lstrip()) else opened + reply
