"""Append-only records of work that takes hours: an interrupted run goes on, a run with other settings is refused.

`Journal` keeps a value for each finished piece of work. `LineFile` collects the lines of a file that appears when all
of them are there. Both lock their file, so that two processes never cut or repeat each other's work.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Collection, ItemsView, Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

from elastic_jax.errors import DataError
from elastic_jax.files import FileLock, parse_json, write_json_lines


class _Log:
    """A locked file of JSON lines: first the settings, then one record for each finished piece of work.

    Every append reaches the disk before it returns. A line cut short by a crash is dropped when the file is opened.

    Raises:
        InUseError: another process has the file open.
        DataError: the file was made with other settings, or a line other than the last is damaged; an append does not
            fit on the disk, which leaves the file readable.
    """

    def __init__(
        self,
        path: Path,
        settings: Mapping[str, Any],
        take: Callable[[dict[str, Any]], None],
        newer: Collection[str] = (),
    ):
        """`take` gets each record that the file holds already; it may lack the settings that `newer` names."""
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self._lock = FileLock(path.with_name(f".{path.name}.lock"), path)
        try:
            settings = _as_json(settings)
            # the lock comes first: what another process appended between reading and cutting would be lost
            whole_bytes = _read(path, settings, take, newer) if path.exists() else 0
            self._file = path.open("ab")
            self._file.truncate(whole_bytes)
            if whole_bytes == 0:
                self._write({"settings": settings})
        except BaseException:
            self._lock.release()
            raise

    def close(self) -> None:
        """Closes the file and frees its lock."""
        try:
            with suppress(OSError):  # of a write that failed, which has said so
                self._file.close()
        finally:
            self._lock.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _write(self, *records: Mapping[str, Any]) -> None:
        try:
            self._file.write("".join(json.dumps(record) + "\n" for record in records).encode())
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            raise DataError(
                f"{self.path} cannot be written: {error}. What was finished before is safe; make room and give the "
                "same command again."
            ) from error


class Journal(_Log):
    """Values of finished work by key; each append is one line `{"key": ..., "value": ...}` for each value.

    `others` are journals of the same settings that other processes write: what they hold counts as done. Journals of
    earlier versions may lack the settings that `newer` names.
    """

    def __init__(
        self,
        path: str | Path,
        settings: Mapping[str, Any],
        *,
        others: Iterable[Path] = (),
        newer: Collection[str] = (),
    ):
        self._values: dict[str, Any] = {}
        for other in others:
            _read(other, _as_json(settings), self._take, newer)
        super().__init__(Path(path), settings, self._take, newer)
        self.settings: dict[str, Any] = journal_settings(self.path) or {}
        """The settings as the file has them."""

    def __contains__(self, key: str) -> bool:
        return key in self._values

    def __getitem__(self, key: str) -> Any:
        return self._values[key]

    def __len__(self) -> int:
        return len(self._values)

    def items(self) -> ItemsView[str, Any]:
        """Keys and values."""
        return self._values.items()

    def append(self, values: Mapping[str, Any]) -> None:
        """Records finished work by key, all of it with one write."""
        self._write(*({"key": key, "value": value} for key, value in values.items()))
        self._values.update(values)

    def _take(self, record: dict[str, Any]) -> None:
        self._values[record["key"]] = record["value"]


def journal_settings(path: Path) -> dict[str, Any] | None:
    """The settings of a journal; None where there is none, or not a whole line of it.

    Raises:
        DataError: the first line is no journal record.
    """
    try:
        with path.open("rb") as file:
            first = file.readline()
    except FileNotFoundError:
        return None
    if not first.endswith(b"\n"):
        return None
    try:
        settings = parse_json(first)["settings"]
        if not isinstance(settings, dict):
            raise TypeError(f"the settings are a {type(settings).__name__}")
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}, line 1 is no journal record ({error}).") from None
    return settings


def read_records(folder: str | Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Settings and values of all journals in an output folder.

    Raises:
        DataError: no journal there, a damaged one, or journals of different settings.
    """
    paths = sorted(Path(folder).glob("journal*.jsonl"))
    if not paths:
        raise DataError(f"{folder} holds no journal*.jsonl; want the output folder of an evaluation.")
    settings = journal_settings(paths[0])
    if settings is None:
        raise DataError(f"{paths[0]}, line 1 is no journal record (it is cut short).")
    values: dict[str, Any] = {}
    for path in paths:
        _read(path, settings, lambda record: values.update({record["key"]: record["value"]}))
    return settings, values


class LineFile(_Log):
    """Collects one line, or none, for each unit of work, in order; call `finish` at the end.

    Until then the lines are in `NAME.part`, a line `{"id": ..., "line": ..., "reason": ...}` for each unit.

    Raises:
        DataError: the file is there already.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any]):
        self.target = path
        self.done: dict[str, str | None] = {}
        """Units that need no more work, by id: None, or why they gave no line."""
        self._refuse_finished()
        super().__init__(path.with_name(path.name + ".part"), settings, self._take)
        try:
            self._refuse_finished()  # by a process that held the lock until now
        except DataError:
            self.path.unlink()
            self.close()
            raise

    def _refuse_finished(self) -> None:
        if self.target.exists():
            raise DataError(f"{self.target} is there already. Remove it, or choose another name.")

    def add(self, uid: str, line: Mapping[str, Any] | None, reason: str | None = None) -> None:
        """Records a finished unit: its line, or the reason why it has none."""
        self._write({"id": uid, "line": line, "reason": reason})
        self.done[uid] = reason

    def finish(self) -> int:
        """Writes the file and removes the part; returns the number of lines.

        Raises:
            DataError: there is none.
        """
        if all(reason is not None for reason in self.done.values()):
            raise DataError(f"{self.target}: nothing to write, every sample was left out.")
        count = write_json_lines(self.target, self._lines())
        self.path.unlink()
        return count

    def _lines(self) -> Iterator[dict[str, Any]]:
        with self.path.open("rb") as file:
            next(file)  # the settings
            for entry in map(parse_json, file):
                if entry["line"] is not None:
                    yield entry["line"]

    def _take(self, record: dict[str, Any]) -> None:
        self.done[record["id"]] = record["reason"]


def _as_json(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings as they come back from a file: tuples are lists there."""
    return json.loads(json.dumps(settings))


def _read(
    path: Path, wanted: dict[str, Any], take: Callable[[dict[str, Any]], None], newer: Collection[str] = ()
) -> int:
    """Checks the settings of a file, gives every record to `take`, and returns the bytes of all whole lines."""
    size = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.endswith(b"\n"):
                break
            try:
                record = parse_json(line)
                if number == 1:
                    _check(path, record["settings"], wanted, newer)
                else:
                    take(record)
            except DataError:
                raise
            except (ValueError, KeyError, TypeError) as error:
                raise DataError(
                    f"{path}, line {number} is no journal record ({error}). Remove the line to have its work "
                    "done again, or choose another output folder."
                ) from None
            size += len(line)
    return size


def _check(path: Path, found: Any, wanted: dict[str, Any], newer: Collection[str]) -> None:
    if not isinstance(found, dict):
        raise TypeError(f"the settings are a {type(found).__name__}")
    names = sorted(found.keys() | {name for name in wanted if name in found or name not in newer})
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
