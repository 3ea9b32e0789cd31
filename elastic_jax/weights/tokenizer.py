"""Tokenizers: `transformers` fast tokenizers of a directory, a hub id or a GGUF file, without torch."""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from elastic_jax.errors import CheckpointError, ElasticError, shown
from elastic_jax.files import read_json

GENERATION_CONFIG = "generation_config.json"
TOKENIZER = "tokenizer.json"

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


def load_tokenizer(source: str | Path) -> PreTrainedTokenizerFast:
    """The tokenizer of a checkpoint, with its chat template and the stop strings of its generation defaults.

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
    if not any((path / name).exists() for name in (TOKENIZER, "tokenizer.model", "vocab.json")):
        raise CheckpointError(f"{path} has no tokenizer ({TOKENIZER}). Copy the files of the base model there.")
    AutoTokenizer = _transformers().AutoTokenizer
    with _reading(path):
        tokenizer = _clean(AutoTokenizer.from_pretrained(path, local_files_only=True, trust_remote_code=False))
        if (path / TOKENIZER).exists() and type(tokenizer) is not _transformers().PreTrainedTokenizerFast:
            _follow_file(tokenizer, path / TOKENIZER)
        tokenizer.encode("a")  # some damaged tokenizers fail only here
    tokenizer.stop_strings = _stop_strings(path / GENERATION_CONFIG)
    return tokenizer


def _follow_file(tokenizer: PreTrainedTokenizerFast, file: Path) -> None:
    """Gives a tokenizer the rules of its file; some classes of transformers 5 replace them by rules of their own.

    The class is what `tokenizer_config.json` or the model type says, which is wrong for many published checkpoints:
    spaces then vanish, and numbers become other tokens, without an error.
    """
    from tokenizers import Tokenizer

    written, rules = Tokenizer.from_file(str(file)), tokenizer.backend_tokenizer
    for part in ("model", "normalizer", "pre_tokenizer", "decoder"):
        setattr(rules, part, getattr(written, part))


def _stop_strings(file: Path) -> tuple[str, ...]:
    stops = read_json(file).get("stop_strings") if file.is_file() else None
    stops = [stops] if isinstance(stops, str) else stops or []
    if not isinstance(stops, list) or not all(isinstance(stop, str) and stop for stop in stops):
        raise CheckpointError(f"{file} has stop_strings {shown(stops)}; want a text, or a list of texts.")
    return tuple(stops)


def _clean(tokenizer: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    """Removes byte order marks from the chat templates; transformers would put them before every prompt.

    Generated text also keeps its blanks before punctuation. Many files `tokenizer_config.json`, Llama 3's too, ask to
    remove them, which was meant for WordPiece.
    """
    tokenizer.clean_up_tokenization_spaces = False
    template = tokenizer.chat_template
    if isinstance(template, str):
        tokenizer.chat_template = template.removeprefix("\ufeff")
    elif isinstance(template, dict):
        tokenizer.chat_template = {name: str(text).removeprefix("\ufeff") for name, text in template.items()}
    elif template is not None:
        raise ValueError(f"chat_template is {shown(template)}; want a text")
    return tokenizer


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turns the many ways in which the readers of other libraries fail on a damaged tokenizer into one error."""
    try:
        yield
    except ElasticError:
        raise
    except BaseException as error:
        # a panic of the Rust code behind tokenizers is no Exception
        if isinstance(error, Exception) or type(error).__name__ == "PanicException":
            reason = " ".join(str(error).split())[:300]
            raise CheckpointError(
                f"the tokenizer in {path} cannot be read: {type(error).__name__}: {reason}. Fetch its files again."
            ) from error
        raise


def _from_gguf(file: Path) -> PreTrainedTokenizerFast:
    """Builds the tokenizer that GGUF metadata describes (the reader of transformers would need torch)."""
    from elastic_jax.weights.gguf import open_reader
    from elastic_jax.weights.gguf_tokenizer import Vocabulary, build_tokenizer

    prefix = "tokenizer."
    fields = open_reader(file).fields
    with _reading(file):
        metadata = {name.removeprefix(prefix): f.contents() for name, f in fields.items() if name.startswith(prefix)}
        vocabulary = Vocabulary.from_metadata(metadata, str(file))
        return _clean(
            _transformers().PreTrainedTokenizerFast(
                tokenizer_object=build_tokenizer(vocabulary),
                chat_template=metadata.get("chat_template"),
                clean_up_tokenization_spaces=False,
                name_or_path=str(file),
                **vocabulary.named,
            )
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
