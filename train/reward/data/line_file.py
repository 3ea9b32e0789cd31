"""A file of JSON lines that takes hours to write: an interrupted run goes on, and the file appears when it is whole."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from elastic_jax.errors import DataError


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
