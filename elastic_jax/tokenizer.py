"""Tokenizers: `transformers` fast tokenizers of a directory, a hub id or a GGUF file, without torch."""

from __future__ import annotations

import importlib
import os
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from elastic_jax.errors import CheckpointError, ConfigError

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from tokenizers.pre_tokenizers import PreTokenizer
    from transformers import PreTrainedTokenizerFast

# The word-splitting rules behind GGUF's `tokenizer.ggml.pre`, as public regular expressions of the models' authors.
_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_LLAMA3 = rf"{_WORDS}|\p{{N}}{{1,3}}|{_REST}"
_QWEN2 = rf"{_WORDS}|\p{{N}}|{_REST}"
_SPLITS = {"llama-bpe": _LLAMA3, "llama3": _LLAMA3, "qwen2": _QWEN2}
_GPT2 = ("gpt-2", "default")
_DIGITS_ONE_BY_ONE = ("smollm", "starcoder")

_CONTROL, _USER_DEFINED = 3, 4
"""Token types of GGUF that are matched whole in the text."""


def load_tokenizer(source: str | Path) -> PreTrainedTokenizerFast:
    """The tokenizer of a checkpoint, with its chat template.

    Args:
        source: a Hugging Face directory, a hub id or a `.gguf` file.

    Raises:
        CheckpointError: no readable tokenizer there.
        ConfigError: a GGUF vocabulary of a kind that is not supported.
    """
    from elastic_jax.weights.locate import locate

    path = locate(source, weights=False)
    if path.is_file():
        return _from_gguf(path)
    if not any((path / name).exists() for name in ("tokenizer.json", "tokenizer.model", "vocab.json")):
        raise CheckpointError(f"{path} has no tokenizer (tokenizer.json). Copy the files of the base model there.")
    AutoTokenizer = _transformers().AutoTokenizer
    try:
        return AutoTokenizer.from_pretrained(path, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, ImportError, KeyError) as error:
        raise CheckpointError(f"the tokenizer in {path} cannot be read: {error}") from error


def _from_gguf(file: Path) -> PreTrainedTokenizerFast:
    """Builds the byte-level BPE that GGUF metadata describes (the reader of transformers would need torch)."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers

    from elastic_jax.weights.gguf import open_reader

    fields = open_reader(file).fields

    def value(name: str, default: Any = None) -> Any:
        field = fields.get(f"tokenizer.{name}")
        return default if field is None else field.contents()

    kind = value("ggml.model")
    if kind != "gpt2":
        raise ConfigError(
            f"{file} has a {kind!r} vocabulary; only byte-level BPE ('gpt2') is read from GGUF. "
            "Load the tokenizer of the original Hugging Face repository instead."
        )
    tokens: list[str] = value("ggml.tokens")
    merges = [tuple(merge.split(" ", 1)) for merge in value("ggml.merges", [])]
    rule = str(value("ggml.pre", "default"))
    vocabulary = {token: i for i, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, ignore_merges=_SPLITS.get(rule) == _LLAMA3))
    tokenizer.pre_tokenizer = _splitter(rule, file)
    if _SPLITS.get(rule) == _QWEN2:
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.decoder = decoders.ByteLevel()
    typed = list(zip(tokens, value("ggml.token_type", []), strict=True))
    tokenizer.add_special_tokens([AddedToken(t, special=True) for t, k in typed if k == _CONTROL])
    tokenizer.add_tokens([AddedToken(t, normalized=False) for t, k in typed if k == _USER_DEFINED])
    names = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}
    ids = {name: value(f"ggml.{key}_token_id") for name, key in names.items()}
    if value("ggml.add_bos_token", False):
        _prepend(tokenizer, tokens, ids["bos_token"])
    return _transformers().PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        chat_template=value("chat_template"),
        clean_up_tokenization_spaces=False,
        **{name: tokens[i] for name, i in ids.items() if i is not None},
    )


def _transformers() -> ModuleType:
    """Imports transformers without its advice to install torch, which this library does not use."""
    quiet = "TRANSFORMERS_NO_ADVISORY_WARNINGS"
    before = os.environ.get(quiet)
    os.environ[quiet] = "1"
    try:
        return importlib.import_module("transformers")
    finally:
        if before is None:
            del os.environ[quiet]
        else:
            os.environ[quiet] = before


def _splitter(name: str, file: Path) -> PreTokenizer:
    from tokenizers import Regex, pre_tokenizers

    if name in _SPLITS:
        words = pre_tokenizers.Split(Regex(_SPLITS[name]), behavior="isolated")
        return pre_tokenizers.Sequence([words, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    words = pre_tokenizers.ByteLevel(add_prefix_space=False)
    if name in _DIGITS_ONE_BY_ONE:
        return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), words])
    if name in _GPT2:
        return words
    known = ", ".join((*_GPT2, *_DIGITS_ONE_BY_ONE, *_SPLITS))
    raise ConfigError(f"{file} splits words by the rule {name!r}; known: {known}.")


def _prepend(tokenizer: Tokenizer, tokens: list[str], bos: int) -> None:
    from tokenizers import processors

    template = f"{tokens[bos]} $A"
    tokenizer.post_processor = processors.TemplateProcessing(
        single=template, pair=f"{template} $B", special_tokens=[(tokens[bos], bos)]
    )
