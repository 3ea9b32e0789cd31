"""Real text to hide needles in and to measure perplexity on: from a user's folder or from the standard library."""

from __future__ import annotations

import hashlib
import random
import re
import sysconfig
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from elastic_jax.errors import DataError
from elastic_jax.files import read_text
from elastic_jax.text.split import Split, on_side, split_of
from elastic_jax.text.tokens import begin_ids, encode_texts

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_PIECE_START = re.compile(r"(?<=[.!?])(?=\s)|(?<=\S)(?=\n\s)")
_LONGEST_PIECE = 300  # tokens; longer ones are tables, inside which no needle can be placed
_NOT_LIBRARY_CODE = {"site-packages", "test", "tests", "idlelib", "encodings", "__pycache__"}


def prose_texts(folder: str | Path | None, split: Split) -> dict[str, str]:
    """Texts by file name: the `*.txt` below `folder`, or Python's own language reference when `folder` is None.

    Only files on the given side of `split_of` are returned. Raises `DataError` when none is left.
    """
    if folder is None:
        from pydoc_data.topics import topics

        return {name: topics[name] for name in on_side(sorted(topics), split)}
    return _read_folder(Path(folder), "*.txt", split)


def read_texts(source: str | Path | None) -> dict[str, str]:
    """Texts by name: one text file, or all `*.txt` below a folder.

    By default those of Python's language reference that no router was trained on.

    Raises:
        DataError: nothing there, or a file that is not UTF-8 text.
    """
    if source is None:
        return prose_texts(None, "evaluation")
    path = Path(source)
    files = [path] if path.is_file() else sorted(path.rglob("*.txt"))
    if not files:
        raise DataError(f"no text at {path}; give a text file, or a folder that holds *.txt files.")
    texts = {}
    for file in files:
        name = file.name if file == path else file.relative_to(path).as_posix()
        texts[name] = read_text(file)
    return texts


def code_texts(folder: str | Path | None, split: Split) -> dict[str, str]:
    """Python sources by file name: the `*.py` below `folder`, or the standard library's when `folder` is None.

    Only files on the given side of `split_of` are returned. Raises `DataError` when none is left.
    """
    return _read_folder(Path(folder or sysconfig.get_path("stdlib")), "*.py", split)


def prose_and_code(
    prose: Mapping[str, str], code: str | Path | None, tokenizer: PreTrainedTokenizerBase
) -> dict[str, Haystack]:
    """Haystacks by the kind of their text: the given prose, and the evaluation side of `code_texts(code)`."""
    return {"prose": Haystack(prose, tokenizer), "code": Haystack(code_texts(code, "evaluation"), tokenizer)}


def _read_folder(folder: Path, pattern: str, split: Split) -> dict[str, str]:
    if not folder.is_dir():
        raise DataError(f"No text folder at {folder}; give a directory that holds {pattern} files.")
    texts = {}
    for path in sorted(folder.rglob(pattern)):
        inside = path.relative_to(folder)
        if split_of(path.name) == split and not _NOT_LIBRARY_CODE.intersection(inside.parts):
            texts[inside.as_posix()] = path.read_text(encoding="utf-8-sig", errors="replace")
    if not texts:
        raise DataError(
            f"{folder} holds no {pattern} file on the {split} side; elastic_jax.text.split puts about one file name "
            "in four on the evaluation side. Add files."
        )
    return texts


@dataclass(frozen=True)
class Piece:
    """A sentence, or an indented line, with its leading white space, and its tokens."""

    text: str
    ids: tuple[int, ...]


class Haystack:
    """Texts cut into token sequences; tokenises each text once, when it is first drawn."""

    def __init__(self, texts: Mapping[str, str], tokenizer: PreTrainedTokenizerBase):
        self._texts = dict(texts)
        self._names = sorted(self._texts)
        self._tokenizer = tokenizer
        self._pieces: dict[str, list[Piece]] = {}
        self._ids: dict[str, list[int]] = {}

    def digest(self) -> str:
        """Identifies the texts, so that results made from other texts are never mixed in."""
        digest = hashlib.sha256()
        for name in self._names:
            digest.update(f"{name}\0{self._texts[name]}\0".encode())
        return digest.hexdigest()[:16]

    def excerpt(self, rng: random.Random, tokens: int) -> list[Piece]:
        """Consecutive sentences from a random place, `tokens` tokens or less: the last one is cut after a whole word.

        Runs on into the next text where one ends. Raises `DataError` when all texts together are shorter.
        """
        first = rng.randrange(len(self._names))
        start = rng.randrange(max(1, len(self._pieces_of(self._names[first]))))
        chosen: list[Piece] = []
        room = tokens
        for offset in range(len(self._names)):
            pieces = self._pieces_of(self._names[(first + offset) % len(self._names)])
            for piece in pieces[start if offset == 0 else 0 :]:
                if len(piece.ids) > room:
                    return chosen + self._cut_at_word(piece, room)
                chosen.append(piece)
                room -= len(piece.ids)
        raise DataError(
            f"The texts hold fewer than the {tokens} tokens of one prompt in sentences; add text or ask for less."
        )

    def window(self, rng: random.Random, tokens: int) -> list[int]:
        """`tokens` token ids: those that begin a text of this tokenizer, then consecutive ones from a random place.

        Raises `DataError` if every text is shorter.
        """
        begin = begin_ids(self._tokenizer)
        tokens -= len(begin)
        for name in rng.sample(self._names, len(self._names)):
            if name not in self._ids:
                (self._ids[name],) = encode_texts(self._tokenizer, [self._texts[name]])
            ids = self._ids[name]
            if len(ids) >= tokens:
                start = rng.randrange(len(ids) - tokens + 1)
                return begin + ids[start : start + tokens]
        raise DataError(f"None of the {len(self._names)} texts has {tokens} tokens; add longer texts or ask for less.")

    def _pieces_of(self, name: str) -> list[Piece]:
        if name not in self._pieces:
            texts = [text for text in _PIECE_START.split(self._texts[name]) if text.strip()]
            encoded = zip(texts, encode_texts(self._tokenizer, texts), strict=True)
            self._pieces[name] = [Piece(text, tuple(ids)) for text, ids in encoded if len(ids) <= _LONGEST_PIECE]
        return self._pieces[name]

    def _cut_at_word(self, piece: Piece, room: int) -> list[Piece]:
        words = re.findall(r"\s*\S+", piece.text)
        kept: list[Piece] = []
        for word, ids in zip(words, encode_texts(self._tokenizer, words), strict=True):
            room -= len(ids)
            if room < 0:
                break
            kept.append(Piece(word, tuple(ids)))
        return kept
