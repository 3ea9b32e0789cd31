"""The small files beside the weights of an exported checkpoint: tokenizer and generation defaults."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

from elastic_jax.config import ModelConfig
from elastic_jax.tokenizer import load_tokenizer
from elastic_jax.weights.router_only import write_json
from elastic_jax.weights.safetensors_dir import read_json

_LOG = logging.getLogger(__name__)

GENERATION_CONFIG = "generation_config.json"
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "tokenizer.model",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
)


def write_side_files(source: str | None, config: ModelConfig, directory: Path) -> None:
    """Copies the tokenizer of `source` (writes it, if that is a GGUF file) and the generation defaults."""
    origin = Path(source) if source else None
    if origin is not None and not origin.exists():
        _LOG.warning("%s is gone, so no tokenizer was written beside the exported weights", origin)
    elif origin is not None and origin.is_file():
        _write_tokenizer(origin, directory)
    elif origin is not None:
        for name in (*TOKENIZER_FILES, GENERATION_CONFIG):
            if (origin / name).is_file():
                shutil.copyfile(origin / name, directory / name)
    ids = {name: config.hf_extra.get(name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    if not (directory / GENERATION_CONFIG).exists() and ids["eos_token_id"] is not None:
        write_json(directory / GENERATION_CONFIG, {name: value for name, value in ids.items() if value is not None})


def _write_tokenizer(gguf_file: Path, directory: Path) -> None:
    load_tokenizer(gguf_file).save_pretrained(directory)
    settings = read_json(directory / "tokenizer_config.json")
    # the name that transformers 4 and 5 both know for a tokenizer.json without a class of its own
    write_json(directory / "tokenizer_config.json", settings | {"tokenizer_class": "PreTrainedTokenizerFast"})
