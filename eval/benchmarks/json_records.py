"""The records of a reward benchmark: every complaint names the file and the line."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from elastic_jax.errors import DataError
from eval.longbench.records import read_records


@dataclass(frozen=True)
class JsonRecord:
    """One line of a JSON-lines file."""

    where: str
    fields: Mapping[str, Any]

    def text(self, name: str) -> str:
        """A field that must hold text with something in it."""
        value = self.fields.get(name)
        if not isinstance(value, str) or not value.strip():
            raise self.error(f"field {name!r} {self._found(name)}; want a text that is not empty")
        return value

    def texts(self, name: str, at_least: int) -> list[str]:
        """A field that must hold a list of texts; single texts may be empty, as an answer can be."""
        value = self.fields.get(name)
        if not isinstance(value, list) or not all(isinstance(entry, str) for entry in value) or len(value) < at_least:
            raise self.error(f"field {name!r} {self._found(name)}; want a list of {at_least} or more texts")
        return value

    def choice(self, name: str, among: Sequence[str]) -> str:
        """A field that must hold one of these texts."""
        value = self.fields.get(name)
        if value not in among:
            raise self.error(f"field {name!r} {self._found(name)}; want one of {', '.join(among)}")
        return str(value)

    def error(self, complaint: str) -> DataError:
        return DataError(f"{self.where}: {complaint}. Correct the record, or fetch the file again.")

    def _found(self, name: str) -> str:
        if name not in self.fields:
            return "is missing"
        shown = json.dumps(self.fields[name], default=str)
        return f"holds {shown if len(shown) <= 60 else shown[:57] + '...'}"


def read_json_lines(path: Path) -> list[JsonRecord]:
    """The records of a file; empty lines are passed over.

    Raises:
        DataError: the file cannot be read, a line is no JSON object, or there is no record at all.
    """
    records = read_records(path, path.name)
    return [JsonRecord(records.where(number), fields) for number, fields in enumerate(records)]
