"""Raw material for the builders: prose, code and ready question-answer records, from a folder or the standard library.

Only the training side of `elastic_jax.text.split` is ever read, so that evaluation texts stay unseen.
"""

from __future__ import annotations

import ast
import sysconfig
from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

from elastic_jax.errors import DataError
from elastic_jax.files import read_text
from elastic_jax.text.split import on_side, split_of
from train.data.foreign import Evidence, read_evidence

MIN_CHARACTERS = 2000
"""Shorter texts give no long context."""


@dataclass(frozen=True)
class Corpus:
    """Texts by kind. Tuples keep the order of sorted file names, so that a seed fixes everything drawn from them."""

    prose: tuple[str, ...]
    code: tuple[str, ...]
    documented: tuple[tuple[str, str], ...]
    """(text, summary) pairs: Python modules and their docstrings."""
    evidence: tuple[Evidence, ...] = ()
    """Questions with their own contexts, read from JSON-lines files."""


def from_folder(folder: Path, exclude: Iterable[str] = ()) -> Corpus:
    """Reads every `.txt` (prose), `.py` (code) and `.jsonl` (questions) below a folder.

    A folder without code is completed by the sources of the standard library.

    Args:
        folder: the root; the layout below it is free.
        exclude: shell patterns of paths relative to `folder` that are skipped.

    Raises:
        DataError: no folder, an unreadable file, a malformed JSON line, or nothing usable.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder. Give one that holds .txt, .py or .jsonl files.")
    patterns = tuple(exclude)
    paths = [
        path
        for path in sorted(folder.rglob("*"))
        if path.suffix in (".txt", ".py", ".jsonl")
        and not any(fnmatch(path.relative_to(folder).as_posix(), pattern) for pattern in patterns)
    ]
    texts = [path for path in paths if path.suffix != ".jsonl" and split_of(path.name) == "train"]
    prose = _long_texts(path for path in texts if path.suffix == ".txt")
    code = _long_texts(path for path in texts if path.suffix == ".py")
    evidence = tuple(item for path in paths if path.suffix == ".jsonl" for item in read_evidence(path))
    if not (prose or code or evidence):
        raise DataError(f"{folder}: found no usable .txt, .py or .jsonl file of {MIN_CHARACTERS} characters or more.")
    return Corpus(prose, code or _standard_code(), _with_summaries(code), evidence)


def from_standard_library() -> Corpus:
    """The texts that every Python has: the sources of the standard library, their docstrings and the language help."""
    from pydoc_data.topics import topics

    code = _standard_code()
    prose = tuple(topics[name] for name in on_side(sorted(topics), "train") if len(topics[name]) >= MIN_CHARACTERS)
    return Corpus(prose, code, _with_summaries(code))


def _standard_code() -> tuple[str, ...]:
    root = Path(sysconfig.get_path("stdlib"))
    skip = {"site-packages", "test", "tests", "idlelib", "lib2to3", "pydoc_data", "encodings", "__pycache__"}
    sources = sorted([*root.glob("*.py"), *root.glob("*/*.py")])
    return _long_texts(path for path in sources if path.parent.name not in skip and split_of(path.name) == "train")


def _long_texts(paths: Iterable[Path]) -> tuple[str, ...]:
    texts = []
    for path in paths:
        text = read_text(path)
        if len(text) >= MIN_CHARACTERS:
            texts.append(text)
    return tuple(texts)


def _with_summaries(code: Iterable[str]) -> tuple[tuple[str, str], ...]:
    """Modules whose own docstring says in a few sentences what they are for, split into (body, docstring)."""
    pairs = []
    for text in code:
        try:
            tree = ast.parse(text)
        except (SyntaxError, ValueError):
            continue
        summary = ast.get_docstring(tree)
        if not summary or not 60 <= len(summary) <= 2000:
            continue
        body = "\n".join(text.splitlines()[tree.body[0].end_lineno :]).strip()
        if len(body) >= MIN_CHARACTERS:
            pairs.append((body, summary))
    return tuple(pairs)
