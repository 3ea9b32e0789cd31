"""Training data from files: records of text, or rows of tokens that the released code packed.

The released code's packed rows (Elastic Attention, its `packed_maxseq` files) have `input_ids` and `labels` `[T]`
(a label is the token at its own place, -100 where it is not learnt), `seq_lengths` `[B + 1]` (cumulative, from 0),
`task_ids` `[B]` and `range_ids` `[B, 8]`, of which numbers 2 and 3 are the first and the last token of the prompt.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np

from elastic_jax.errors import DataError, shown
from elastic_jax.files import parse_json
from train.config import RouterTrainConfig
from train.data.packing import Sample, make_sample, tokenise
from train.data.records import TASKS, Record, parse_record
from train.data.tables import read_rows

PACKED_FIELDS = ("input_ids", "labels", "seq_lengths", "task_ids", "range_ids")
IGNORED_LABEL = -100


def read_samples(path: Path, tokenizer: Any, config: RouterTrainConfig) -> list[Sample]:
    """The samples of a JSON-lines, Parquet or Arrow file or folder, whose first row decides which form all rows have.

    Raises:
        ConfigError: Parquet or Arrow, and pyarrow is not installed.
        DataError: no row, a malformed one (named with file and row), or a sample longer than a row.
    """
    rows = read_rows(path)
    first = list(islice(rows, 1))
    rows = chain(first, rows)
    if first and isinstance(row := first[0][1], dict) and "input_ids" in row and "seq_lengths" in row:
        return packed_samples(rows, config)
    return tokenise(parse_records(rows, path), tokenizer, config)


def parse_records(rows: Iterable[tuple[str, Any]], path: Path) -> list[Record]:
    """The records of rows of text, each a pair of place and value.

    `metadata` may be an object or the text of one (JSON or a Python literal), as released data have it.

    Raises:
        DataError: no record, or a bad one (its place is named).
    """
    records = [parse_record(_with_metadata(raw, where), where) for where, raw in rows]
    if not records:
        raise DataError(f"{path}: holds no records. Want one object (context, question, answer, metadata) a row.")
    return records


def packed_samples(rows: Iterable[tuple[str, Any]], config: RouterTrainConfig) -> list[Sample]:
    """The samples of packed rows, taken apart again, so that each can start on a block boundary.

    Tokens that the rows exclude from the loss are excluded whatever the settings say.

    Raises:
        DataError: a malformed row, or a sample longer than a row of this run.
    """
    samples = []
    for where, raw in rows:
        ids, labels, ends, tasks, prompts = _arrays(raw, where)
        for index, (begin, end) in enumerate(zip(ends[:-1], ends[1:], strict=True)):
            if end - begin > config.data.row_length:
                raise DataError(
                    f"{where}: sample {index} has {end - begin} tokens; a row holds {config.data.row_length}. "
                    "Raise data.row_length."
                )
            learnable = labels[begin:end] != IGNORED_LABEL
            samples.append(make_sample(ids[begin:end], int(prompts[index]), tasks[index], config, learnable=learnable))
    return samples


def _arrays(raw: Any, where: str) -> tuple[np.ndarray, np.ndarray, list[int], list[int], np.ndarray]:
    """(ids, labels, cumulative lengths, task ids, prompt lengths) of a packed row."""
    missing = [name for name in PACKED_FIELDS if not isinstance(raw, dict) or raw.get(name) is None]
    if missing:
        raise DataError(f"{where}: a packed row lacks {', '.join(missing)}; want {', '.join(PACKED_FIELDS)}.")
    try:
        ids, labels = (np.asarray(raw[name], np.int32).reshape(-1) for name in ("input_ids", "labels"))
        ends, tasks = (np.asarray(raw[name], np.int64).reshape(-1).tolist() for name in ("seq_lengths", "task_ids"))
        ranges = np.asarray(raw["range_ids"], np.int64).reshape(len(tasks), 8)
    except (TypeError, ValueError, OverflowError) as error:
        raise DataError(f"{where}: numbers of a packed row have the wrong form ({error}).") from error
    if len(labels) != len(ids) or len(ends) != len(tasks) + 1 or not tasks:
        raise DataError(
            f"{where}: {len(ids)} input_ids, {len(labels)} labels, {len(ends)} seq_lengths, {len(tasks)} task_ids; "
            "want as many labels as input_ids and one more of seq_lengths than of task_ids."
        )
    if ends[0] != 0 or ends[-1] > len(ids) or any(b >= e for b, e in zip(ends[:-1], ends[1:], strict=True)):
        raise DataError(f"{where}: seq_lengths {shown(ends)}: want rising numbers from 0 to {len(ids)} at most.")
    unknown = [task for task in tasks if not 0 <= task < len(TASKS)]
    if unknown:
        raise DataError(f"{where}: task_ids {unknown}; want 0 to {len(TASKS) - 1}. Remove samples of other tasks.")
    prompts = ranges[:, 3] + 1
    lengths = np.diff(ends)
    if (prompts < 1).any() or (prompts > lengths).any():
        raise DataError(f"{where}: prompts of {prompts.tolist()} tokens do not fit samples of {lengths.tolist()}.")
    return ids, labels, ends, tasks, prompts


def _with_metadata(raw: Any, where: str) -> Any:
    """The record with `metadata` read, where it is the text of an object."""
    if not isinstance(raw, dict) or not isinstance(raw.get("metadata"), str):
        return raw
    text = raw["metadata"]
    for read in (parse_json, ast.literal_eval):
        try:
            return raw | {"metadata": read(text)}
        except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
            continue
    raise DataError(f"{where}: `metadata` is text, but neither JSON nor a Python literal: {shown(text)}.")
