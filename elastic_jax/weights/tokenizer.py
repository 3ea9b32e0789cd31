"""Tokenizers: `transformers` fast tokenizers of a directory, a hub id or a GGUF file, without torch."""

from __future__ import annotations

import importlib
import os
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from elastic_jax.errors import CheckpointError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


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
    """Builds the tokenizer that GGUF metadata describes (the reader of transformers would need torch)."""
    from elastic_jax.weights.gguf import open_reader
    from elastic_jax.weights.gguf_tokenizer import Vocabulary, build_tokenizer

    prefix = "tokenizer."
    fields = open_reader(file).fields
    metadata = {name.removeprefix(prefix): f.contents() for name, f in fields.items() if name.startswith(prefix)}
    vocabulary = Vocabulary.from_metadata(metadata, str(file))
    return _transformers().PreTrainedTokenizerFast(
        tokenizer_object=build_tokenizer(vocabulary),
        chat_template=metadata.get("chat_template"),
        clean_up_tokenization_spaces=False,
        **vocabulary.named,
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
