"""The token that fills conversations up to one length, for programs that tell padding by its token id.

`transformers` scores a sequence at its last token that is not `pad_token_id`. Where conversations end with that very
token, as with the many models whose padding is their end of text, it reads another place than the model was trained on.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from elastic_jax.errors import DataError
from elastic_jax.text.chat import chat_text
from elastic_jax.text.tokens import encode_chat

_CONVERSATION = ({"role": "user", "content": "Who?"}, {"role": "assistant", "content": "Ann."})
_SPARE = ("pad", "reserved", "unused")
"""Parts of the names of tokens that nothing is written with."""


def padding_token(
    tokenizer: Any | None, *, given: int | None, begin: int | None, ends: Collection[int], vocab_size: int
) -> int | None:
    """A token that no conversation ends with, so that it can be told from the conversation; None if there is none.

    The choice is, in this order: the padding of the checkpoint, that of the tokenizer, a token that its name marks as
    spare, the token that begins a text, and another special token, where a chat template says how conversations end.

    Args:
        tokenizer: the tokenizer of the checkpoint, where it has one.
        given: the checkpoint's `pad_token_id`.
        begin: its `bos_token_id`, for a checkpoint without tokenizer.
        ends: its end-of-text tokens.
        vocab_size: ids are smaller than this.
    """
    if tokenizer is None:
        return next((token for token in (given, begin) if _possible(token, vocab_size, ends)), None)
    size = min(vocab_size, len(tokenizer))
    last = _last_token(tokenizer)
    # what a template writes last is known, so other ends of text that the checkpoint lists may be its padding
    closing = {*ends} if last is None else {last, tokenizer.eos_token_id}
    for token in (given, tokenizer.pad_token_id):
        if _possible(token, size, closing):
            return token
    special = {
        number: token.content.lower() for number, token in tokenizer.added_tokens_decoder.items() if token.special
    }
    spare = [number for word in _SPARE for number, name in special.items() if word in name]
    candidates = [*spare, tokenizer.bos_token_id, *([] if last is None else special)]
    return next((token for token in candidates if _possible(token, size, closing | {*ends})), None)


def _possible(token: int | None, vocab_size: int, ends: Collection[int | None]) -> bool:
    return token is not None and 0 <= token < vocab_size and token not in ends


def _last_token(tokenizer: Any) -> int | None:
    """What the chat template ends a conversation with; None without one that works."""
    try:
        return encode_chat(tokenizer, chat_text(tokenizer, _CONVERSATION))[-1]
    except DataError:
        return None
