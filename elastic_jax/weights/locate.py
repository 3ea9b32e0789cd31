"""Finds the local path of what a user names: a directory, a .gguf file or a hub id."""

from __future__ import annotations

import re
from pathlib import Path

from elastic_jax.errors import CheckpointError
from elastic_jax.files import read_json
from elastic_jax.weights.safetensors_dir import INDEX, SINGLE

_HUB_ID = re.compile(r"[\w][\w.-]*/[\w][\w.-]*(@[\w./-]+)?")
_SMALL_FILES = ["*.json", "*.jinja", "tokenizer.model", "merges.txt", "vocab.txt"]


def locate(source: str | Path, *, weights: bool = True) -> Path:
    """A local directory or .gguf file. A hub id (`owner/name`, `owner/name@revision`) is downloaded or found cached.

    `weights=False` fetches only the small files of a hub repository (configuration, tokenizer).

    Raises:
        CheckpointError: nothing there, a file of another kind, or a hub that cannot be reached.
    """
    path = Path(source).expanduser()
    if path.is_dir():
        return path
    if path.is_file():
        return _gguf_file(path)
    if not isinstance(source, Path) and _HUB_ID.fullmatch(source):
        return _from_hub(source, weights)
    raise CheckpointError(
        f"{str(source)!r} does not exist; want a Hugging Face directory, a .gguf file or a hub id such as "
        "HuggingFaceTB/SmolLM2-135M-Instruct."
    )


def _gguf_file(path: Path) -> Path:
    if path.suffix == ".gguf":
        return path
    if path.suffix in (".bin", ".pt", ".pth", ".ckpt"):
        raise CheckpointError(f"{path} is a pickle, which can run code and is never loaded. Convert it to safetensors.")
    raise CheckpointError(f"{path} is a single file; want its directory (with config.json), or a .gguf file.")


def _from_hub(source: str, weights: bool) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

    repo, _, revision = source.partition("@")

    def fetch(patterns: list[str]) -> Path:
        return Path(snapshot_download(repo, revision=revision or None, allow_patterns=patterns))

    try:
        directory = fetch(_SMALL_FILES)
        if weights:
            index = directory / INDEX
            shards = read_json(index)["weight_map"].values() if index.exists() else [SINGLE]
            fetch(sorted(set(shards)))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, HfHubHTTPError) as error:
        raise CheckpointError(
            f"{source!r} is no local path, and as a hub id it cannot be fetched or found in the local cache: {error}. "
            "Without a network, give the directory of a downloaded checkpoint or a .gguf file."
        ) from error
    return directory
