"""Reading benchmark records: JSON lines or a JSON list, from a folder or the Hugging Face hub.

The records of a reward benchmark: every complaint names the file and the line.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from elastic_jax.errors import DataError
from elastic_jax.files import parse_json


class Records(Sequence):
    """Records of one file, each with its line, so that a refusal can name both."""

    def __init__(self, path: str, records: list[dict[str, Any]], lines: list[int]):
        self.path = path
        self._records, self._lines = records, lines

    def __getitem__(self, number: Any) -> Any:
        return self._records[number]

    def __len__(self) -> int:
        return len(self._records)

    def where(self, number: int) -> str:
        """File and line of a record."""
        return f"{self.path}, line {self._lines[number]}"

    def error(self, number: int, message: str) -> DataError:
        return DataError(f"{self.where(number)}: {message}.")


def read_records(source: str | Path, name: str, *, folder: str = "") -> Records:
    """Records of the file `name` in a folder (or in its sub-folder `folder`), or of a data set on the hub.

    `source` may be the file itself. Files that end in `.json` hold a list, others one object per line.

    Raises:
        DataError: no such file, or a line that is no JSON object, by file and line.
    """
    path = _find(source, name, folder)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read as UTF-8 text: {error}") from error
    records: list[dict[str, Any]] = []
    lines: list[int] = []
    if path.suffix == ".json":
        try:
            content = parse_json(text)
        except ValueError as error:
            raise DataError(f"{path} is no JSON: {error}.") from error
        items = enumerate(content if isinstance(content, list) else [content], start=1)
    else:
        items = ((number, line) for number, line in enumerate(text.split("\n"), start=1) if line.strip())
    for number, item in items:
        try:
            record = parse_json(item) if isinstance(item, str) else item
        except ValueError as error:
            raise DataError(f"{path}, line {number}: no JSON ({error}).") from error
        if not isinstance(record, dict):
            raise DataError(f"{path}, line {number}: a {type(record).__name__}; want a JSON object.")
        records.append(record)
        lines.append(number)
    if not records:
        raise DataError(f"{path} holds no record.")
    return Records(str(path), records, lines)


def text_field(records: Records, number: int, field: str, *, empty: bool = False) -> str:
    """A text of a record; `DataError` if it is missing, of another type, or empty where it may not be."""
    record = records[number]
    if field not in record:
        raise records.error(number, f"no field {field!r}; it has {', '.join(sorted(record))}")
    value = record[field]
    if not isinstance(value, str) or not (value or empty):
        raise records.error(number, f"{field} is {value!r}; want a text")
    return value


def _find(source: str | Path, name: str, folder: str) -> Path:
    path = Path(source)
    if path.is_file():
        return path
    if path.is_dir():
        for candidate in (path / name, path / folder / name):
            if candidate.is_file():
                return candidate
        raise DataError(f"{path} has no {name}; want the published files of the benchmark in that folder.")
    if str(source).count("/") != 1:
        raise DataError(f"no file or folder at {source}; want one, or a data set on the hub such as owner/name.")
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    failed: Exception | None = None
    wanted = f"{folder}/{name}" if folder else name
    for file in dict.fromkeys((wanted, name)):
        try:
            return Path(hf_hub_download(str(source), file, repo_type="dataset"))
        except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
            failed = error
    raise DataError(f"data set {source} gives no {name}: {failed}. Download it, and name the folder.") from failed


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
