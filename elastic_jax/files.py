"""JSON from outside, and files and directories that appear whole or not at all."""

from __future__ import annotations

import json
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from elastic_jax.errors import CheckpointError


@contextmanager
def atomic_directory(target: str | Path, *, overwrite: bool = False) -> Iterator[Path]:
    """Gives an empty directory beside `target` to write into; on success it takes the name `target`.

    On any error, also Ctrl-C or a full disk, `target` is as before and the partial copy is removed.

    Raises:
        CheckpointError: `target` is a file, is not empty (without `overwrite`), or cannot be written.
    """
    target = Path(target).expanduser().resolve()
    if target.exists() and not target.is_dir():
        raise CheckpointError(f"{target} is a file; want a directory to write into.")
    if target.is_dir() and any(target.iterdir()) and not overwrite:
        raise CheckpointError(f"{target} is not empty. Choose another directory, or pass overwrite=True to replace it.")
    partial = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}.partial")
    try:
        partial.mkdir(parents=True)
        yield partial
        _flush(partial)
        _swap(partial, target)
    except OSError as error:
        raise CheckpointError(f"cannot write {target}: {error}. What was there is unchanged.") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _swap(partial: Path, target: Path) -> None:
    if not target.is_dir():
        partial.rename(target)
        return
    replaced = partial.with_suffix(".replaced")
    target.rename(replaced)
    try:
        partial.rename(target)
    except BaseException:
        replaced.rename(target)
        raise
    _flush_one(target.parent)
    shutil.rmtree(replaced, ignore_errors=True)


def _flush(directory: Path) -> None:
    """Forces contents and names onto the disk, so that the rename never shows a half-written directory."""
    readable = directory.stat().st_mode & 0o666
    for path in directory.rglob("*"):
        if path.is_file():
            path.chmod(readable)  # safetensors creates private files
        _flush_one(path)
    _flush_one(directory)


def _flush_one(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def parse_json(text: str | bytes) -> Any:
    """The value of a JSON text.

    Raises:
        ValueError: no JSON, no Unicode, or nested deeper than can be read.
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deep") from None


def write_text(file: Path, text: str) -> None:
    """Writes a UTF-8 file that appears whole or not at all."""
    partial = file.with_name(f".{file.name}.{uuid.uuid4().hex[:8]}.partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(file)


def write_json(file: Path, value: Any, *, indent: int | None = 1) -> None:
    """Writes a value as JSON; the file appears whole or not at all."""
    write_text(file, json.dumps(value, indent=indent) + "\n")
