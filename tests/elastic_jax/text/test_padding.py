"""Which token a checkpoint's conversations are filled up with."""

import copy

import pytest
from chat_tokenizers import CHATML, chat_tokenizer

from elastic_jax.text.padding import padding_token


def tokenizer_with(*special: str, template: str | None = CHATML):
    tokenizer = copy.deepcopy(chat_tokenizer())
    tokenizer.add_tokens(list(special), special_tokens=True)
    tokenizer.chat_template = template
    return tokenizer


def chosen(tokenizer, **settings) -> str:
    token = padding_token(tokenizer, **{"given": None, "begin": None, "ends": (), "vocab_size": 10_000} | settings)
    return tokenizer.convert_ids_to_tokens(token)


def test_tokens_that_nothing_is_written_with_come_first() -> None:
    assert chosen(tokenizer_with("<|reserved_7|>", "<|right_pad_id|>")) == "<|right_pad_id|>"
    assert chosen(tokenizer_with("<|reserved_7|>")) == "<|reserved_7|>"
    assert chosen(tokenizer_with()) == "<|im_start|>"


def test_padding_that_ends_no_conversation_stays() -> None:
    """Also where it ends the text of the base model, and is listed among the ends."""
    tokenizer = tokenizer_with("<|reserved_7|>", "<|endoftext|>")
    pad, end = tokenizer.convert_tokens_to_ids(["<|endoftext|>", "<|im_end|>"])
    assert chosen(tokenizer, given=pad, ends=(end, pad)) == "<|endoftext|>"
    tokenizer.pad_token = "<|endoftext|>"
    assert chosen(tokenizer, given=end, ends=(end, pad)) == "<|endoftext|>"
    assert chosen(tokenizer_with("<|reserved_7|>"), given=end, ends=(end,)) == "<|reserved_7|>"


def test_a_token_without_a_row_in_the_embedding_is_none() -> None:
    tokenizer = tokenizer_with("<|right_pad_id|>")
    assert chosen(tokenizer, vocab_size=len(tokenizer) - 1) == "<|im_start|>"


@pytest.mark.parametrize(("begin", "found"), [(1, 1), (2, None), (None, None)])
def test_without_a_tokenizer_only_the_beginning_of_a_text_is_known(begin, found) -> None:
    assert padding_token(None, given=2, begin=begin, ends=(2,), vocab_size=10) == found


def test_without_a_template_special_tokens_may_end_a_conversation() -> None:
    tokenizer = tokenizer_with(template=None)
    settings = {"given": None, "begin": None, "ends": (), "vocab_size": 10_000}
    assert padding_token(tokenizer, **settings) is None
