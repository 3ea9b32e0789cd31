"""`save_pretrained`: writes a model as a checkpoint that transformers, the official code or this library can open.

Beside the weights it writes the small files of a checkpoint: tokenizer and generation defaults.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from elastic_jax.config import ModelConfig
from elastic_jax.config.model import config_to_elastic
from elastic_jax.errors import CheckpointError, ConfigError
from elastic_jax.files import atomic_directory, read_json, write_json
from elastic_jax.generation import end_ids
from elastic_jax.heads.record import HEADS_ARRAYS, HEADS_CONFIG
from elastic_jax.int8_linear import int8_maps
from elastic_jax.model import ElasticForCausalLM, require_routers, to_params
from elastic_jax.text.padding import padding_token
from elastic_jax.weights.fused import fused_place
from elastic_jax.weights.heads import heads_to_save
from elastic_jax.weights.hf import CONFIG
from elastic_jax.weights.names import ROUTER_PREFIX, SCORE, Entry, entries
from elastic_jax.weights.router_only import (
    ROUTER_CONFIG,
    ROUTER_WEIGHTS,
    default_extras,
    log_temperatures,
    router_json,
)
from elastic_jax.weights.safetensors_dir import INDEX, SINGLE
from elastic_jax.weights.tokenizer import GENERATION_CONFIG, load_tokenizer

_LOG = logging.getLogger(__name__)

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


_HEADS = (HEADS_CONFIG, HEADS_ARRAYS)
_WEIGHTS = (SINGLE, "model-*-of-*.safetensors", ROUTER_WEIGHTS)
_REPLACED = (CONFIG, INDEX, GENERATION_CONFIG, ROUTER_CONFIG, *_HEADS, *_WEIGHTS, *TOKENIZER_FILES)
"""Names of the files that `save_pretrained` writes, and therefore replaces."""


def check_replaceable(directory: str | Path) -> None:
    """Raises `CheckpointError` for a directory that is neither new nor empty and holds no checkpoint to replace."""
    directory = Path(directory).expanduser()
    if not directory.is_dir():
        return
    names = sorted(entry.name for entry in directory.iterdir())
    is_model = {CONFIG, ROUTER_CONFIG} & {*names} and any(any(directory.glob(pattern)) for pattern in _WEIGHTS)
    is_checkpoint = is_model or {HEADS_CONFIG, HEADS_ARRAYS} <= {*names}
    if names and not is_checkpoint:
        raise CheckpointError(
            f"{directory} holds no checkpoint, but {', '.join(names[:3])}{' ...' if len(names) > 3 else ''}. Only a "
            "checkpoint is replaced; choose another directory."
        )


@contextmanager
def _new_checkpoint(directory: str | Path, overwrite: bool) -> Iterator[Path]:
    """Gives the folder to write the files of a checkpoint into; see `atomic_directory`."""
    if overwrite:
        check_replaceable(directory)
    with atomic_directory(directory, replaces=_REPLACED if overwrite else None) as partial:
        yield partial


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


Format = Literal["hf", "elastic", "router"]


def save_pretrained(
    model: ElasticForCausalLM,
    directory: str | Path,
    *,
    format: Format = "hf",
    overwrite: bool = False,
    max_shard_bytes: int = 4_000_000_000,
) -> None:
    """Writes a model as safetensors; the directory appears whole or not at all.

    Args:
        format: "hf": the backbone, as `transformers` reads it; "elastic": backbone, routers and λ under the names of
            released Elastic Attention checkpoints; "router": routers only, for `from_pretrained(router=...)`.
        overwrite: replace a checkpoint that is in the directory; other files there stay.
        max_shard_bytes: tensors are split into files of at most this size.

    Values that were not changed since loading are written bit for bit in the dtype of the model. The tokenizer of
    `model.source` and the calibrated heads of the model go along, except for "router".

    Raises:
        CheckpointError: the target is not empty (with `overwrite`: and holds no checkpoint), or cannot be written; what
            was there is unchanged.
        ConfigError: a model that the format cannot express, or without the trained routers that it holds.
    """
    config = model.config
    params = to_params(model)
    if format not in ("hf", "elastic", "router"):
        raise ConfigError(f"unknown checkpoint format {format!r}; want hf, elastic or router.")
    if format != "hf":  # fresh routers would count as trained when they are read back
        require_routers(model, f"format {format}")
    if format == "router":
        with _new_checkpoint(directory, overwrite) as partial:
            name = Path(model.source).name if model.source else None
            write_json(partial / ROUTER_CONFIG, router_json(config, name))
            _write_file(partial / ROUTER_WEIGHTS, _pieces(config, params, routers=True, backbone=False))
        return
    pieces = list(_pieces(config, params, routers=format == "elastic", backbone=True))
    raw = config.to_hf() if format == "hf" else config_to_elastic(config)
    if format == "elastic":
        kept = {**(model.extras or default_extras(config)), **log_temperatures(config)}
        pieces += [_Piece(name, value) for name, value in kept.items()]
    raw["dtype"] = raw["torch_dtype"] = str(params["embed.embedding"].dtype)
    heads = heads_to_save(model)
    with _new_checkpoint(directory, overwrite) as partial:
        write_json(partial / CONFIG, raw)
        _write_shards(partial, pieces, max_shard_bytes)
        write_side_files(model.source, config, partial)
        if heads is not None:
            heads.write(partial)


def save_reward_model(
    decoder: ElasticForCausalLM,
    score_D1: Any,
    config: ModelConfig,
    directory: str | Path,
    *,
    overwrite: bool = False,
    max_shard_bytes: int = 4_000_000_000,
) -> None:
    """Writes decoder and score head as `transformers` reads a sequence classifier of one label, without routers.

    Save routers with `save_pretrained(decoder, ..., format="router")`. The padding of the checkpoint and its tokenizer
    becomes one that no conversation ends with (`elastic_jax.text.padding`). See `save_pretrained` for the rest.
    """
    params = to_params(decoder) | {SCORE: score_D1}
    raw = config.to_hf()
    raw |= {
        "architectures": [raw["architectures"][0].replace("ForCausalLM", "ForSequenceClassification")],
        "id2label": {"0": "LABEL_0"},
        "label2id": {"LABEL_0": 0},
        "dtype": str(params["embed.embedding"].dtype),
        "torch_dtype": str(params["embed.embedding"].dtype),
    }
    heads = heads_to_save(decoder)
    with _new_checkpoint(directory, overwrite) as partial:
        write_json(partial / CONFIG, raw)  # the reader of the tokenizer looks there for its class
        _write_shards(partial, list(_pieces(config, params, routers=False, backbone=True)), max_shard_bytes)
        write_side_files(decoder.source, config, partial)
        write_json(partial / CONFIG, raw | {"pad_token_id": _write_padding(config, partial)})
        if heads is not None:
            heads.write(partial)


def _write_padding(config: ModelConfig, directory: Path) -> int | None:
    """Chooses the padding token of a sequence classifier and makes it that of the tokenizer in the directory.

    If every token may end a conversation, the result is None, with a warning: `transformers` then refuses batches and
    scores single sequences at their last token.
    """
    try:
        tokenizer = load_tokenizer(directory)
    except CheckpointError:
        tokenizer = None
    given, begin = (config.hf_extra.get(name) for name in ("pad_token_id", "bos_token_id"))
    pad = padding_token(tokenizer, given=given, begin=begin, ends=end_ids(config), vocab_size=config.vocab_size)
    if pad is None:
        _LOG.warning(
            "Every known token may end a conversation, so the exported config.json names no pad_token_id: "
            "transformers then scores one sequence at a time. For batches, add a padding token to the tokenizer and "
            "name it as pad_token_id in config.json."
        )
    elif tokenizer is not None and tokenizer.pad_token_id != pad:
        named = {"pad_token": tokenizer.convert_ids_to_tokens(pad)}
        for file in (directory / "tokenizer_config.json", directory / "special_tokens_map.json"):
            if file.exists():
                write_json(file, read_json(file) | named)
    return pad


@dataclass(frozen=True)
class _Piece:
    """One tensor to write, fetched from its device only when its file is written."""

    name: str
    array: Any
    entry: Entry | None = None
    layer: int | None = None

    @property
    def nbytes(self) -> int:
        return self.array.nbytes // (self.array.shape[0] if self.layer is not None else 1)

    def fetch(self) -> np.ndarray:
        if self.entry is None:
            return self.array
        return self.entry.to_hf(np.asarray(self.array if self.layer is None else self.array[self.layer]))


@dataclass(frozen=True)
class _FusedPiece:
    """One tensor to write that holds several matrices, rows after rows."""

    name: str
    parts: Sequence[_Piece]

    @property
    def nbytes(self) -> int:
        return sum(part.nbytes for part in self.parts)

    def fetch(self) -> np.ndarray:
        return np.concatenate([part.fetch() for part in self.parts])


def _pieces(
    config: ModelConfig, params: dict[str, Any], *, routers: bool, backbone: bool
) -> Iterator[_Piece | _FusedPiece]:
    if backbone and int8_maps(params):
        raise ConfigError("the layers of this model are int8; only its routers can be written. Load the model anew.")
    fused: dict[str, dict[int, _Piece]] = {}
    for entry in entries({path: array.shape for path, array in params.items()}):
        if not (routers if entry.path.startswith(ROUTER_PREFIX) else backbone):
            continue
        for i, name in enumerate(entry.hf_names()):
            piece = _Piece(name, params[entry.path], entry, i if entry.stacked else None)
            whole, place = fused_place(name, config)
            if whole == name:
                yield piece
            else:
                fused.setdefault(whole, {})[place] = piece
    for whole, parts in fused.items():
        yield _FusedPiece(whole, [parts[place] for place in sorted(parts)])


def _write_shards(directory: Path, pieces: list[_Piece | _FusedPiece], max_shard_bytes: int) -> None:
    shards: list[list[_Piece | _FusedPiece]] = [[]]
    room = max_shard_bytes
    for piece in sorted(pieces, key=lambda piece: piece.name):
        if shards[-1] and piece.nbytes > room:
            shards.append([])
            room = max_shard_bytes
        shards[-1].append(piece)
        room -= piece.nbytes
    if len(shards) == 1:
        _write_file(directory / SINGLE, shards[0])
        return
    weight_map = {}
    for number, shard in enumerate(shards, 1):
        name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        _write_file(directory / name, shard)
        weight_map |= {piece.name: name for piece in shard}
    total = sum(piece.nbytes for piece in pieces)
    write_json(directory / INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})


def _write_file(file: Path, pieces: Iterable[_Piece | _FusedPiece]) -> None:
    from safetensors import SafetensorError
    from safetensors.numpy import save_file

    tensors = {piece.name: piece.fetch() for piece in pieces}
    try:
        # transformers refuses a file whose metadata does not name a framework
        save_file(tensors, file, metadata={"format": "pt"})
    except SafetensorError as error:
        raise OSError(f"{file.name}: {error}") from error
