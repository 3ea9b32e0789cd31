"""Texts and conversations as token ids: the one place where training, evaluation and generation tokenise prompts.

A plain text begins with the tokens that the tokenizer puts before every text (Llama's `<|begin_of_text|>`), exactly
once. A conversation begins as its chat template says.
"""

from __future__ import annotations

import functools
import json
import logging
from collections.abc import Sequence
from typing import Any, NamedTuple

from elastic_jax.errors import DataError
from elastic_jax.files import valid_unicode
from elastic_jax.text.chat import ChatText, control_tokens, say_once

_LOG = logging.getLogger(__name__)


class Encoded(NamedTuple):
    """Token ids, and for each token its first character and last + 1 in the text."""

    ids: list[int]
    offsets: list[tuple[int, int]]


def begin_ids(tokenizer: Any) -> list[int]:
    """The tokens that the tokenizer puts before a text; none for most models other than Llama and Mistral."""
    plain = tokenizer("a", add_special_tokens=False, verbose=False)["input_ids"]
    whole = tokenizer("a", verbose=False)["input_ids"]
    for start in range(len(whole) - len(plain) + 1):
        if whole[start : start + len(plain)] == plain:
            return list(whole[:start])
    return []


def encode_text(tokenizer: Any, text: str, *, begin: bool, controls: bool = False) -> list[int]:
    """Token ids of a plain text. No end-of-text token is added, also by a tokenizer that would.

    Args:
        begin: put the tokens before it that the tokenizer begins a text with, unless the text spells them itself.
        controls: a spelled control token such as `<|im_end|>` becomes that token, for prompts that a user writes by
            hand; otherwise it stays text, as in everything that is data.
    """
    ids = list(tokenizer(valid_unicode(text), **_plain_options(controls=controls))["input_ids"])
    if not begin:
        return ids
    first = begin_ids(tokenizer)
    if first and ids[: len(first)] == first:
        _LOG.warning("the prompt begins with %r already; it is not put before it again", tokenizer.decode(first))
        return ids
    return [*first, *ids]


def encode_texts(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    """Token ids of parts of texts, in which control tokens stay text."""
    return tokenizer([valid_unicode(text) for text in texts], **_plain_options())["input_ids"] if texts else []


def encode_offsets(tokenizer: Any, text: str) -> Encoded:
    """Tokens of a part of a text, in which control tokens stay text, with the characters of each."""
    found = tokenizer(text, return_offsets_mapping=True, **_plain_options())
    return Encoded(found["input_ids"], found["offset_mapping"])


def encode_chat(tokenizer: Any, chat: ChatText) -> list[int]:
    """Token ids of a conversation: control tokens of the template are tokens, those in messages are text."""
    if chat.spelled:
        return encode_chat_offsets(tokenizer, chat).ids
    ids = tokenizer(chat.text, add_special_tokens=False, verbose=False)["input_ids"]
    return ids[_doubled(tokenizer, ids) :]


def encode_chat_offsets(tokenizer: Any, chat: ChatText) -> Encoded:
    """`encode_chat`, with the characters of each token."""
    whole = tokenizer(chat.text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    ids, offsets = list(whole["input_ids"]), [tuple(offset) for offset in whole["offset_mapping"]]
    if chat.spelled:
        ids, offsets = _as_text(tokenizer, chat, ids, offsets)
    doubled = _doubled(tokenizer, ids)
    return Encoded(ids[doubled:], offsets[doubled:])


def _plain_options(*, controls: bool = False) -> dict[str, bool]:
    return {"add_special_tokens": False, "verbose": False, "split_special_tokens": not controls}


def _doubled(tokenizer: Any, ids: Sequence[int]) -> int:
    """1 where a template writes the beginning-of-text token twice."""
    begin = getattr(tokenizer, "bos_token_id", None)
    if begin is None or list(ids[:2]) != [begin, begin]:
        return 0
    say_once(f"the chat template writes {tokenizer.bos_token!r} twice at the beginning; one of them is left out")
    return 1


def _as_text(
    tokenizer: Any, chat: ChatText, ids: Sequence[int], offsets: Sequence[tuple[int, int]]
) -> tuple[list[int], list[tuple[int, int]]]:
    """Tokenises the stretches between the template's control tokens anew where messages spell some inside.

    A tokenizer treats such stretches independently, so all others keep their tokens.
    """
    controls = frozenset(control_tokens(tokenizer).values())
    out_ids: list[int] = []
    out_offsets: list[tuple[int, int]] = []
    held: list[int] = []  # places of the tokens since the template's last control token
    start = 0

    def close(end: int) -> None:
        if any(first < end and start < last for first, last in chat.spelled):
            found = _plain(tokenizer, chat.text[start:end], inside=start > 0)
            if controls.intersection(found.ids):
                raise DataError(
                    f"a message spells a control token in {chat.text[start:end][:60]!r}, which this tokenizer cannot "
                    "write as text. Take it out of the message."
                )
            out_ids.extend(found.ids)
            out_offsets.extend((first + start, last + start) for first, last in found.offsets)
        else:
            out_ids.extend(ids[place] for place in held)
            out_offsets.extend(offsets[place] for place in held)
        held.clear()

    for place, (token, (first, last)) in enumerate(zip(ids, offsets, strict=True)):
        shown = chat.text[first:last]
        inner = first + len(shown) - len(shown.lstrip())  # some tokens take the blanks around them
        if token not in controls or any(a <= inner < b for a, b in chat.spelled):
            held.append(place)
            continue
        close(first)
        out_ids.append(token)
        out_offsets.append((first, last))
        start = last
    close(len(chat.text))
    return out_ids, out_offsets


def _plain(tokenizer: Any, text: str, *, inside: bool) -> Encoded:
    """A text without any control token; `inside` a longer one, it gets no blank before it as SentencePiece adds."""
    plain = _without_controls(tokenizer)
    if inside:
        newline = plain.encode("\n", add_special_tokens=False)
        found = plain.encode(f"\n{text}", add_special_tokens=False)
        count = len(newline.tokens)
        if found.tokens[:count] == newline.tokens:
            offsets = [(first - 1, last - 1) for first, last in found.offsets[count:]]
            return Encoded(tokenizer.convert_tokens_to_ids(found.tokens[count:]), offsets)
    found = plain.encode(text, add_special_tokens=False)
    # the ids of added tokens are others where some of these are missing, the names are the same
    return Encoded(tokenizer.convert_tokens_to_ids(found.tokens), found.offsets)


@functools.lru_cache(maxsize=2)
def _without_controls(tokenizer: Any) -> Any:
    """The backend of a tokenizer, ignorant of control tokens. Built only for data that spell one: it takes a second."""
    from tokenizers import Tokenizer

    controls = control_tokens(tokenizer)
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    state["added_tokens"] = [token for token in state["added_tokens"] if token["content"] not in controls]
    return Tokenizer.from_str(json.dumps(state))
