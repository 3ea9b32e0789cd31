"""Append-only record of finished work: a restarted run skips what is there, a run with other settings is refused.

A file of JSON lines that takes hours to write: an interrupted run goes on, and the file appears when it is whole.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from elastic_jax.errors import DataError
from elastic_jax.files import parse_json


class Journal:
    """JSON lines: first the settings, then one `{"key": ..., "value": ...}` per finished piece of work.

    Every append reaches the disk before it returns. A line cut short by a crash is dropped when the file is opened.
    `others` are journals of the same settings that other processes write: what they hold counts as done.

    Raises:
        DataError: a file was made under other settings, or a line other than the last is damaged; an append does not
            fit on the disk, which leaves the file readable.
    """

    def __init__(self, path: str | Path, settings: Mapping[str, Any], *, others: Iterable[Path] = ()):
        self.path = Path(path)
        self._values: dict[str, Any] = {}
        wanted = json.loads(json.dumps(settings))
        self.path.parent.mkdir(parents=True, exist_ok=True)
        for other in others:
            _take_over(other, wanted, self._values)
        whole_bytes = _take_over(self.path, wanted, self._values) if self.path.exists() else 0
        self._file = self.path.open("ab")
        self._file.truncate(whole_bytes)
        if whole_bytes == 0:
            self._write({"settings": wanted})

    def __contains__(self, key: str) -> bool:
        return key in self._values

    def __getitem__(self, key: str) -> Any:
        return self._values[key]

    def __len__(self) -> int:
        return len(self._values)

    def append(self, values: Mapping[str, Any]) -> None:
        """Records finished work by key, all of it with one write."""
        self._write(*({"key": key, "value": value} for key, value in values.items()))
        self._values.update(values)

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _write(self, *records: dict[str, Any]) -> None:
        try:
            self._file.write("".join(json.dumps(record) + "\n" for record in records).encode())
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            raise DataError(
                f"{self.path} cannot be written: {error}. What was finished before is safe; make room and give the "
                "same command again."
            ) from error


def read_records(folder: str | Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Settings and values of all journals in an output folder.

    Raises:
        DataError: no journal there, a damaged one, or journals of different settings.
    """
    paths = sorted(Path(folder).glob("journal*.jsonl"))
    if not paths:
        raise DataError(f"{folder} holds no journal*.jsonl; want the output folder of an evaluation.")
    first = paths[0].read_bytes().partition(b"\n")[0]
    try:
        settings = parse_json(first)["settings"]
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{paths[0]}, line 1 is no journal record ({error}).") from None
    values: dict[str, Any] = {}
    for path in paths:
        _take_over(path, settings, values)
    return settings, values


def _take_over(path: Path, wanted: dict[str, Any], values: dict[str, Any]) -> int:
    """Adds the records of a file to `values` and returns how many bytes of the file are whole lines."""
    data = path.read_bytes()
    whole_bytes = data.rfind(b"\n") + 1
    for number, line in enumerate(data[:whole_bytes].splitlines(), start=1):
        try:
            record = parse_json(line)
            if number == 1:
                _check(path, record["settings"], wanted)
            else:
                values[record["key"]] = record["value"]
        except (ValueError, KeyError, TypeError) as error:
            if isinstance(error, DataError):
                raise
            raise DataError(
                f"{path}, line {number} is no journal record ({error}). Remove the line to have its work "
                "done again, or choose another output folder."
            ) from None
    return whole_bytes


def _check(path: Path, found: Any, wanted: dict[str, Any]) -> None:
    if not isinstance(found, dict):
        raise TypeError(f"the settings are a {type(found).__name__}")
    names = sorted(found.keys() | wanted.keys())
    changed = [
        f"{name}: the journal has {found.get(name)!r}, this run {wanted.get(name)!r}"
        for name in names
        if found.get(name) != wanted.get(name)
    ]
    if changed:
        raise DataError(
            f"{path} was made with other settings, whose results cannot be mixed:\n  "
            + "\n  ".join(changed)
            + "\nChoose another output folder, or the former settings."
        )


class LineFile:
    """Collects one line, or none, for each unit of work; use as a context manager, call `finish` at the end.

    Until then the lines are in `NAME.part`, whose first line holds the settings.

    Raises:
        DataError: the file is there already, or its part was begun with other settings.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any]):
        self.path, self.part = path, path.with_name(path.name + ".part")
        self.done: dict[str, str | None] = {}
        """Units that need no more work, by id: None, or why they gave no line."""
        if path.exists():
            raise DataError(f"{path} is there already. Remove it, or choose another name.")
        wanted = json.loads(json.dumps(settings))
        path.parent.mkdir(parents=True, exist_ok=True)
        whole = self._take_over(wanted) if self.part.exists() else 0
        self._file = self.part.open("ab")
        self._file.truncate(whole)
        if whole == 0:
            self._write({"settings": wanted})

    def add(self, uid: str, line: Mapping[str, Any] | None, reason: str | None = None) -> None:
        """Records a finished unit: its line, or the reason why it has none."""
        self._write({"id": uid, "line": line, "reason": reason})
        self.done[uid] = reason

    def finish(self) -> int:
        """Writes the file and removes the part; returns the number of lines.

        Raises:
            DataError: there is none.
        """
        unfinished, count = self.path.with_name(self.path.name + ".whole"), 0
        with unfinished.open("w", encoding="utf-8") as file:
            for entry in self._entries():
                if entry.get("line") is not None:
                    file.write(json.dumps(entry["line"], ensure_ascii=False) + "\n")
                    count += 1
        if not count:
            unfinished.unlink()
            raise DataError(f"{self.path}: nothing to write, every sample was left out.")
        self._file.close()
        unfinished.replace(self.path)
        self.part.unlink()
        return count

    def __enter__(self) -> LineFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def _write(self, value: Mapping[str, Any]) -> None:
        self._file.write(json.dumps(value, ensure_ascii=False).encode() + b"\n")
        self._file.flush()

    def _entries(self) -> Iterator[dict[str, Any]]:
        """All whole lines of the part; one that a crash cut short is the last and ends without a line break."""
        with self.part.open("rb") as file:
            for number, line in enumerate(file, start=1):
                if not line.endswith(b"\n"):
                    return
                try:
                    yield json.loads(line)
                except ValueError as error:
                    raise DataError(
                        f"{self.part}, line {number} is damaged. Remove the file to begin again."
                    ) from error

    def _take_over(self, wanted: dict[str, Any]) -> int:
        """Reads what is done and returns the bytes of all whole lines."""
        for number, entry in enumerate(self._entries(), start=1):
            if number == 1 and entry.get("settings") != wanted:
                found = entry.get("settings") or {}
                names = sorted(name for name in found.keys() | wanted.keys() if found.get(name) != wanted.get(name))
                raise DataError(
                    f"{self.part} was begun with other settings ({', '.join(names)}). Remove it, choose another --out, "
                    "or use the former settings."
                )
            if number > 1:
                self.done[entry["id"]] = entry["reason"]
        data = self.part.read_bytes()
        return data.rfind(b"\n") + 1
