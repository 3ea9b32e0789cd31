"""Rows of JSON-lines, Parquet and Arrow files, each with the place that a complaint can name."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from elastic_jax.errors import ConfigError, DataError, shown
from elastic_jax.files import parse_json, read_json_lines

_LINES = (".jsonl", ".json", ".ndjson")
_WANTED = "a .jsonl or .parquet file, a folder of either, or a folder that `datasets` saved (Arrow)"


def read_rows(path: Path) -> Iterator[tuple[str, Any]]:
    """Yields (`file:line` or `file:row n`, value) of every row, in the order of the files.

    Fields that hold null are left out: a table has every column in every row, and null where a row lacks it.

    Args:
        path: a JSON-lines or Parquet file, a folder of files of one of these kinds, or a folder written by
            `datasets.Dataset.save_to_disk`.

    Raises:
        ConfigError: Parquet or Arrow files, and pyarrow is not installed.
        DataError: nothing there that can be read, or a damaged file.
    """
    if path.is_dir():
        files = _files_of(path)
    elif path.is_file():
        files = [path]
    else:
        raise DataError(f"{path}: no such file or folder. Want {_WANTED}.")
    for file in files:
        if file.suffix in _LINES:
            rows = read_json_lines(file)
        elif file.suffix == ".parquet":
            rows = _parquet_rows(file)
        elif file.suffix == ".arrow":
            rows = _arrow_rows(file)
        else:
            raise DataError(f"{file}: unknown kind of file {file.suffix!r}. Want {_WANTED}.")
        for where, row in rows:
            yield where, _without_nulls(row)


def _without_nulls(value: Any) -> Any:
    """The value without the fields that hold null, in objects of objects and lists of objects too."""
    if isinstance(value, dict):
        return {name: _without_nulls(item) for name, item in value.items() if item is not None}
    if isinstance(value, list) and any(isinstance(item, dict) for item in value):
        return [_without_nulls(item) for item in value]
    return value


def _files_of(folder: Path) -> list[Path]:
    if (folder / "dataset_dict.json").is_file():
        splits = ", ".join(sorted(entry.name for entry in folder.iterdir() if entry.is_dir()))
        raise DataError(f"{folder} holds several splits ({splits}). Give the folder of one of them.")
    if (folder / "state.json").is_file():
        return _saved_files(folder)
    by_kind = {suffix: sorted(folder.glob(f"*{suffix}")) for suffix in (".jsonl", ".parquet", ".arrow")}
    found = [files for files in by_kind.values() if files]
    if len(found) != 1:
        kinds = ", ".join(suffix for suffix, files in by_kind.items() if files) or "none"
        raise DataError(f"{folder}: want files of one kind, .jsonl, .parquet or .arrow; found {kinds}.")
    return found[0]


def _saved_files(folder: Path) -> list[Path]:
    """The data files that `save_to_disk` lists; its caches lie beside them and are left alone."""
    try:
        entries = parse_json((folder / "state.json").read_bytes())["_data_files"]
        files = [folder / entry["filename"] for entry in entries]
        missing = [file.name for file in files if not file.is_file()]
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise DataError(f"{folder / 'state.json'}: not the state of a saved data set ({shown(error)}).") from error
    if missing or not files:
        raise DataError(f"{folder}: data files are missing: {', '.join(missing) or 'all'}. Fetch the folder again.")
    return files


def _parquet_rows(file: Path) -> Iterator[tuple[str, Any]]:
    pyarrow = _pyarrow("parquet")
    try:
        with pyarrow.parquet.ParquetFile(file) as table:
            yield from _numbered(file, map(_rows_of, table.iter_batches(batch_size=256)))
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise DataError(f"{file}: cannot be read as Parquet ({error}). Fetch it again.") from error


def _arrow_rows(file: Path) -> Iterator[tuple[str, Any]]:
    pyarrow = _pyarrow("ipc")
    try:
        with pyarrow.memory_map(str(file)) as source, pyarrow.ipc.open_stream(source) as stream:
            yield from _numbered(file, map(_rows_of, stream))
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise DataError(f"{file}: cannot be read as an Arrow stream ({error}). Fetch it again.") from error


def _rows_of(batch: Any) -> list[Any]:
    """The rows of a record batch; one with places outside of its buffers would end the process, were it not checked."""
    batch.validate(full=True)
    return batch.to_pylist()


def _numbered(file: Path, batches: Iterator[list[Any]]) -> Iterator[tuple[str, Any]]:
    number = 0
    for batch in batches:
        for row in batch:
            number += 1
            yield f"{file}:row {number}", row


def _pyarrow(part: str) -> ModuleType:
    """pyarrow with one of its modules imported."""
    import importlib

    try:
        importlib.import_module(f"pyarrow.{part}")
        return importlib.import_module("pyarrow")
    except ImportError as error:
        raise ConfigError(
            "Parquet and Arrow files need pyarrow: pip install 'elastic-jax[arrow]', or convert them to JSON lines."
        ) from error
