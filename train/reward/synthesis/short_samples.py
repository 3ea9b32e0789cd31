"""The input of synthesis: answers with the short text that it takes to judge them, and judgements of them.

One JSON object per line: `perspective`, `question`, `response`, and `chunks` (texts, or objects with `text` and
`critical`); `reference`, an answer known to be right, may be left out. Then `judgement`, a text, or `judgements`, texts
by the name of the model that wrote them; neither is needed to make the prompts that ask for them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from elastic_jax.errors import DataError, shown
from train.data.tables import read_rows
from train.reward.synthesis.lengthen import Chunk, ShortSample
from train.reward.synthesis.perspectives import PERSPECTIVES


@dataclass(frozen=True)
class JudgedSample:
    """A line of the input."""

    where: str
    uid: str
    """The line's `id`, or a digest of its content."""
    sample: ShortSample
    judgement: str | None = None
    judgements: Mapping[str, str] | None = None


def read_short_samples(path: Path) -> list[JudgedSample]:
    """The samples of a JSON-lines, Parquet or Arrow file; see `read_rows`.

    Raises:
        DataError: a malformed line, two lines of one id, lines of both kinds, or none at all.
    """
    found: dict[str, JudgedSample] = {}
    for where, row in read_rows(path):
        made = _parse(row, where)
        if made.uid in found:
            raise DataError(f"{where}: the id {made.uid!r} is that of {found[made.uid].where} too. Want one for each.")
        found[made.uid] = made
    if not found:
        raise DataError(f"{path}: holds no samples. Want one JSON object per line.")
    items = list(found.values())
    if any(item.judgement for item in items) and any(item.judgements for item in items):
        raise DataError(
            f"{path}: some lines have `judgement`, others `judgements`. They make files of two kinds: part them."
        )
    return items


def _parse(row: object, where: str) -> JudgedSample:
    if not isinstance(row, dict):
        raise DataError(f"{where}: a sample is an object with named fields; got {type(row).__name__}.")
    perspective = row.get("perspective")
    if not isinstance(perspective, str) or perspective not in PERSPECTIVES:
        raise DataError(f"{where}: `perspective` is {shown(perspective)}; want one of {', '.join(PERSPECTIVES)}.")
    question, response = (_text(row, name, where) for name in ("question", "response"))
    reference = _text(row, "reference", where) if row.get("reference") is not None else None
    sample = ShortSample(perspective, question, response, _chunks(row.get("chunks"), where), reference)
    judgement, judgements = row.get("judgement"), row.get("judgements")
    if judgement is not None:
        _text(row, "judgement", where)
    if judgements is not None:
        texts = isinstance(judgements, dict) and all(isinstance(text, str) for text in judgements.values())
        if not texts or judgement is not None:
            raise DataError(
                f"{where}: want `judgement`, a text, or `judgements`, texts by name of the model; not both."
            )
    uid = row.get("id")
    return JudgedSample(where, _digest(row) if uid is None else str(uid), sample, judgement, judgements)


def _chunks(value: Any, where: str) -> tuple[Chunk, ...]:
    wanted = "want a list of texts, or of objects with `text` and `critical`, one of them critical"
    if not isinstance(value, list):
        raise DataError(f"{where}: `chunks` is {type(value).__name__}; {wanted}.")
    chunks = []
    for entry in value:
        fields = {"text": entry} if isinstance(entry, str) else entry
        text = fields.get("text") if isinstance(fields, dict) else None
        critical = fields.get("critical", True) if isinstance(fields, dict) else None
        if not isinstance(text, str) or not text.strip() or not isinstance(critical, bool):
            raise DataError(f"{where}: `chunks` holds {shown(entry)}; {wanted}.")
        chunks.append(Chunk(text, critical))
    if not any(chunk.critical for chunk in chunks):
        raise DataError(f"{where}: no chunk is critical; {wanted}.")
    return tuple(chunks)


def _text(row: dict[str, Any], name: str, where: str) -> str:
    value = row.get(name)
    if not isinstance(value, str) or not value.strip():
        raise DataError(f"{where}: `{name}` must be a text that is not empty; got {shown(value)}.")
    return value


def _digest(row: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(row, sort_keys=True, default=str).encode()).hexdigest()[:16]
