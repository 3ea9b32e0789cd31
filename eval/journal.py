"""Append-only record of finished work: a restarted run skips what is there, a run with other settings is refused."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from elastic_jax.errors import DataError


class Journal:
    """JSON lines: first the settings, then one `{"key": ..., "value": ...}` per finished piece of work.

    Every append reaches the disk before it returns. A line cut short by a crash is dropped when the file is opened.

    Raises:
        DataError: the file was made under other settings, or a line other than the last is damaged.
    """

    def __init__(self, path: str | Path, settings: Mapping[str, Any]):
        self.path = Path(path)
        self._values: dict[str, Any] = {}
        wanted = json.loads(json.dumps(settings))
        self.path.parent.mkdir(parents=True, exist_ok=True)
        whole_bytes = self._read(wanted) if self.path.exists() else 0
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
        self._file.write("".join(json.dumps(record) + "\n" for record in records).encode())
        self._file.flush()
        os.fsync(self._file.fileno())

    def _read(self, wanted: dict[str, Any]) -> int:
        """Takes over the records and returns how many bytes of the file are whole lines."""
        data = self.path.read_bytes()
        whole_bytes = data.rfind(b"\n") + 1
        for number, line in enumerate(data[:whole_bytes].splitlines(), start=1):
            try:
                record = json.loads(line)
                if number == 1:
                    self._check(record["settings"], wanted)
                else:
                    self._values[record["key"]] = record["value"]
            except (ValueError, KeyError, TypeError) as error:
                if isinstance(error, DataError):
                    raise
                raise DataError(
                    f"{self.path}, line {number} is no journal record ({error}). Remove the line to have its work "
                    "done again, or choose another output folder."
                ) from None
        return whole_bytes

    def _check(self, found: dict[str, Any], wanted: dict[str, Any]) -> None:
        names = sorted(found.keys() | wanted.keys())
        changed = [
            f"{name}: the journal has {found.get(name)!r}, this run {wanted.get(name)!r}"
            for name in names
            if found.get(name) != wanted.get(name)
        ]
        if changed:
            raise DataError(
                f"{self.path} was made with other settings, whose results cannot be mixed:\n  "
                + "\n  ".join(changed)
                + "\nChoose another output folder, or the former settings."
            )
