"""JSON files in and out, files and directories that appear whole or not at all, and locks between processes."""

from __future__ import annotations

import ctypes
import fcntl
import json
import logging
import os
import re
import shutil
import socket
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from elastic_jax.errors import CheckpointError, ConfigError, DataError, InUseError

_LOG = logging.getLogger(__name__)


_HERE, _EXCHANGE = -100, 2
"""AT_FDCWD and RENAME_EXCHANGE of Linux' renameat2."""
_SURROGATE = re.compile("[\ud800-\udfff]")
_SURROGATE_ESCAPE = re.compile(r"\\u[dD][89a-fA-F]")


def valid_unicode(text: str) -> str:
    """The text with U+FFFD for every half of a surrogate pair: JSON that was cut inside an emoji holds such halves."""
    if not _SURROGATE.search(text):
        return text
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def parse_json(text: str | bytes) -> Any:
    """The value of a JSON text, a byte order mark before it or not; its strings are valid Unicode.

    Raises:
        ValueError: no JSON, no Unicode, or nested deeper than can be read.
    """
    if isinstance(text, bytes):
        text = text.decode("utf-8-sig")
    try:
        value = json.loads(text.removeprefix("\ufeff"))
        return _valid_strings(value) if _SURROGATE_ESCAPE.search(text) else value
    except RecursionError:
        raise ValueError("it is nested too deep") from None


def _valid_strings(value: Any) -> Any:
    if isinstance(value, str):
        return valid_unicode(value)
    if isinstance(value, list):
        return [_valid_strings(item) for item in value]
    if isinstance(value, dict):
        return {valid_unicode(name): _valid_strings(item) for name, item in value.items()}
    return value


def read_json(file: Path) -> dict[str, Any]:
    """The JSON object that a file of this program or of a checkpoint holds.

    Raises:
        CheckpointError: the file is missing, is not JSON, or holds another kind of value.
    """
    try:
        value = parse_json(file.read_bytes())
    except FileNotFoundError as error:
        raise CheckpointError(f"{file} does not exist; want a checkpoint with that file.") from error
    except (ValueError, OSError) as error:
        raise CheckpointError(f"{file} is not readable JSON ({error}).") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{file} holds {type(value).__name__}; want a JSON object.")
    return value


def read_text(file: Path) -> str:
    """The text of a UTF-8 file, without a byte order mark.

    Raises:
        DataError: the file is missing or holds something else.
    """
    try:
        return file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file} cannot be read as UTF-8 text: {error}. Convert it, or leave it out.") from error


def read_json_lines(file: Path) -> Iterator[tuple[str, Any]]:
    """Yields (`FILE:LINE`, value) for every line that is not blank, reading one line at a time.

    Raises:
        DataError: the file cannot be read as UTF-8, or a line is no JSON.
    """
    try:
        # a text file ends its lines at \n, \r\n or \r only; str.splitlines would also cut at separators inside texts
        with file.open(encoding="utf-8-sig") as lines:
            for number, line in enumerate(lines, start=1):
                where = f"{file}:{number}"
                if not line.strip():
                    continue
                try:
                    value = parse_json(line)
                except ValueError as error:
                    raise DataError(f"{where}: not valid JSON ({error}).") from error
                yield where, value
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file} cannot be read as UTF-8 text: {error}.") from error


def write_text(file: Path, text: str) -> None:
    """Writes a UTF-8 file that appears whole or not at all."""
    with atomic_file(file) as partial:
        partial.write_text(text, encoding="utf-8")


def write_json(file: Path, value: Any, *, indent: int | None = 1) -> None:
    """Writes a value as JSON; the file appears whole or not at all."""
    write_text(file, json.dumps(value, indent=indent) + "\n")


def write_json_lines(file: Path, values: Iterable[Mapping[str, Any]]) -> int:
    """Writes one JSON object a line and returns their number; the file appears whole or not at all."""
    with atomic_file(file) as partial, partial.open("w", encoding="utf-8") as lines:
        return sum(lines.write(json.dumps(value, ensure_ascii=False) + "\n") > 0 for value in values)


@contextmanager
def writing(file: Path) -> Iterator[None]:
    """Within it, an error of the operating system that names no file, as a full disk gives it, names this one."""
    try:
        yield
    except OSError as error:
        error.filename = str(file) if error.filename is None else error.filename
        raise


@contextmanager
def atomic_file(target: Path) -> Iterator[Path]:
    """Gives a path beside `target` to write to; on success the file there replaces `target`.

    On any error, also Ctrl-C or a full disk, `target` is as before and the partial file is removed.
    """
    partial = _partial(target)
    try:
        with writing(target):
            yield partial
            _flush_one(partial)
            partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def atomic_directory(target: str | Path, *, replaces: Sequence[str] | None = None) -> Iterator[Path]:
    """Gives an empty directory beside `target` to write into; on success it takes the name `target`.

    On any error, also Ctrl-C or a full disk, `target` is as before and the partial copy is removed.

    Args:
        replaces: patterns of the names in `target` that may be replaced. Everything else in it stays. By default
            nothing may be, so `target` is new or empty.

    Raises:
        CheckpointError: `target` is a file, is not empty (without `replaces`), or cannot be written.
    """
    target = Path(target).expanduser().resolve()
    if target.exists() and not target.is_dir():
        raise CheckpointError(f"{target} is a file; want a directory to write into.")
    if target.is_dir() and any(target.iterdir()) and replaces is None:
        raise CheckpointError(
            f"{target} is not empty. Choose another directory, or pass overwrite=True to replace a checkpoint in it."
        )
    partial = _partial(target)
    try:
        partial.mkdir(parents=True)
        yield partial
        _flush(partial)
        if target.is_dir():
            # only now: `_flush` sets permissions, and a linked file is the very file that stays
            _link_others(target, partial, replaces or ())
            _flush_one(partial)
        _swap(partial, target)
    except OSError as error:
        raise CheckpointError(f"cannot write {target}: {error}. What was there is unchanged.") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _link_others(source: Path, partial: Path, replaced: Sequence[str]) -> None:
    """Puts what is not replaced under its name into `partial` too: the same files, copied only where links cannot be.

    So the whole directory changes in one rename, and nobody ever sees it without these files.
    """

    def link(old: str, new: str) -> None:
        try:
            os.link(old, new, follow_symlinks=False)
        except OSError:
            shutil.copy2(old, new, follow_symlinks=False)

    for entry in source.iterdir():
        if any(entry.match(pattern) for pattern in replaced) or (partial / entry.name).exists():
            continue
        if entry.is_dir() and not entry.is_symlink():
            shutil.copytree(entry, partial / entry.name, symlinks=True, copy_function=link)
        else:
            link(str(entry), str(partial / entry.name))


def check_output(target: Path, *, folder: bool = False) -> None:
    """Finds out before any work whether a file, or a folder with files, can be written at `target`; leaves nothing.

    Raises:
        ConfigError: it cannot.
    """
    target = target.expanduser().resolve()
    if target.exists() and target.is_dir() != folder:
        is_a, want = ("file", "folder") if folder else ("folder", "file")
        raise ConfigError(f"cannot write {target}: it is a {is_a}; want a {want}. Choose another place.")
    place = target if folder else target.parent
    while not place.exists():
        place = place.parent
    try:
        probe = _partial(place / "probe")
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise ConfigError(f"cannot write {target}: {place}: {error.strerror}. Choose another place.") from error


def remove_partial(directory: Path) -> None:
    """Removes what writers that were killed left unfinished below a directory, which must be locked by the caller."""
    for partial in list(directory.rglob(".*.partial")):
        shutil.rmtree(partial) if partial.is_dir() else partial.unlink(missing_ok=True)


def _partial(target: Path) -> Path:
    """A new name beside `target`, so that two writers of one target never write into the same file."""
    return target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}.partial")


def _swap(partial: Path, target: Path) -> None:
    """Gives `partial` the name of `target`, and removes what had it."""
    if not target.is_dir():
        partial.rename(target)
        return
    if _exchanged(partial, target):
        _flush_one(target.parent)
        shutil.rmtree(partial, ignore_errors=True)
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


def _exchanged(one: Path, other: Path) -> bool:
    """Lets two paths change places in one step, where the system can (Linux): a kill never leaves a name without its
    directory."""
    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError):
        return False
    return rename(_HERE, os.fsencode(one), _HERE, os.fsencode(other), _EXCHANGE) == 0


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


class FileLock:
    """Keeps other processes from something that this process writes, until `release` or the end of the process.

    The operating system drops the lock with its process, however that ends (`flock`). The lock file says who holds it.
    """

    def __init__(self, file: Path, guarded: Path):
        """
        Args:
            file: the lock file, which exists while the lock is held.
            guarded: what the lock is for, as the error names it.

        Raises:
            InUseError: another process, or another place in this one, holds the lock.
        """
        self._file, self._guarded = file, guarded
        while not self._taken():
            pass  # the holder before removed the lock file after this process had opened it
        since = time.strftime("%Y-%m-%d %H:%M:%S %Z")
        self._handle.truncate(0)
        self._handle.write(f"process {os.getpid()} on {socket.gethostname()} since {since}\n")
        self._handle.flush()

    def _taken(self) -> bool:
        """Locks the file; false where its name no longer stands for the file that was locked."""
        self._handle = self._file.open("a+", encoding="utf-8", errors="replace")
        try:
            fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._handle.seek(0)
            holder = self._handle.read().strip() or "another process"
            self._handle.close()
            raise InUseError(
                f"{self._guarded} is in use by {holder}. Wait until it ends, stop it, or choose another place."
            ) from None
        except OSError as error:
            _LOG.warning("%s cannot be locked (%s): let no second process write there", self._guarded, error)
        try:
            if os.path.samestat(self._file.stat(), os.fstat(self._handle.fileno())):
                return True
        except FileNotFoundError:
            pass
        self._handle.close()
        return False

    def release(self) -> None:
        """Removes the lock file and frees the lock; the order keeps a process that waits from locking a lost file."""
        if not self._handle.closed:
            self._file.unlink(missing_ok=True)
            self._handle.close()

    def __enter__(self) -> FileLock:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()
