"""Records of benchmark files: JSON lines or a JSON list, from a folder or the Hugging Face hub."""

from __future__ import annotations

from codecs import BOM_UTF8
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

from elastic_jax.errors import DataError, shown
from elastic_jax.files import parse_json, read_text


@dataclass(frozen=True)
class JsonRecord:
    """One record of a file, and its place there for error messages."""

    where: str
    fields: Mapping[str, Any]

    def text(self, name: str, *, empty: bool = False) -> str:
        """The text in a field; it may be empty only with `empty`."""
        value = self.fields.get(name)
        if not isinstance(value, str) or not (value.strip() or empty):
            raise self.error(f"field {name!r} {self._found(name)}; want a text{'' if empty else ' that is not empty'}")
        return value

    def texts(self, name: str, at_least: int) -> list[str]:
        """The list of texts in a field; a text in it may be empty, as an answer can be."""
        value = self.fields.get(name)
        if not isinstance(value, list) or not all(isinstance(entry, str) for entry in value) or len(value) < at_least:
            raise self.error(f"field {name!r} {self._found(name)}; want a list of {at_least} or more texts")
        return value

    def choice(self, name: str, among: Sequence[str]) -> str:
        """The text in a field, which must be one of `among`."""
        value = self.fields.get(name)
        if value not in among:
            raise self.error(f"field {name!r} {self._found(name)}; want one of {', '.join(among)}")
        return str(value)

    def error(self, complaint: str) -> DataError:
        return DataError(f"{self.where}: {complaint}. Correct the record, or fetch the file again.")

    def _found(self, name: str) -> str:
        if name not in self.fields:
            return "is missing"
        return f"holds {shown(self.fields[name])}"


class Lazy[T](Sequence[T]):
    """A sequence whose members are made each time they are asked for: contexts of a benchmark fill gigabytes."""

    def __init__(self, count: int, make: Callable[[int], T]):
        self._count, self._make = count, make

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, index: int) -> T: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[T]: ...
    def __getitem__(self, index: int | slice) -> T | Sequence[T]:
        places = range(self._count)[index]
        return self._make(places) if isinstance(places, int) else [self._make(place) for place in places]


def _json_lines(path: Path) -> Lazy[JsonRecord]:
    starts: list[tuple[int, int]] = []  # byte and number of each line that is not blank
    try:
        with path.open("rb") as lines:
            start = 0
            for number, line in enumerate(lines, 1):
                if line.removeprefix(BOM_UTF8).strip():
                    starts.append((start, number))
                start += len(line)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error}.") from error

    def read(index: int) -> JsonRecord:
        start, number = starts[index]
        try:
            with path.open("rb") as lines:
                lines.seek(start)
                line = lines.readline().decode("utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"{path} cannot be read as UTF-8 text: {error}.") from error
        try:
            return _record(f"{path}:{number}", parse_json(line))
        except DataError:
            raise
        except ValueError as error:
            raise DataError(f"{path}:{number}: not valid JSON ({error}).") from error

    return Lazy(len(starts), read)


def _record(where: str, item: Any) -> JsonRecord:
    if not isinstance(item, dict):
        raise DataError(f"{where}: a {type(item).__name__}; want a JSON object.")
    return JsonRecord(where, item)


def read_records(source: str | Path, name: str = "", *, folder: str = "") -> Sequence[JsonRecord]:
    """Records of the file `name` in a folder (or in its sub-folder `folder`), or of a data set on the hub.

    `source` may be the file itself. Files that end in `.json` hold a list, others one object per line, which is read
    again each time it is asked for.

    Raises:
        DataError: no such file, or (when it is asked for) a line that is no JSON object, by file and line.
    """
    path = _find(source, name, folder)
    records: Sequence[JsonRecord]
    if path.suffix == ".json":
        try:
            content = parse_json(read_text(path))
        except ValueError as error:
            raise DataError(f"{path} is not valid JSON: {error}.") from error
        items = content if isinstance(content, list) else [content]
        records = [_record(f"{path}:{number}", item) for number, item in enumerate(items, 1)]
    else:
        records = _json_lines(path)
    if not records:
        raise DataError(f"{path} holds no record.")
    return records


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
