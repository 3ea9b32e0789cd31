"""From the data settings to tokenised samples."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from train.config import RouterTrainConfig
from train.data.builders import Builder, build_records
from train.data.corpus import from_folder, from_standard_library
from train.data.packing import Sample, tokenise
from train.data.records import Record
from train.data.sources import holds_packed_rows, read_packed, read_records


def load_records(config: RouterTrainConfig, tokenizer: Any) -> list[Record]:
    """The records that the settings ask for: read from a file, or built from a folder or the standard library.

    Raises:
        DataError: nothing there, or a malformed file (named with its line).
    """
    data = config.data
    if data.records is not None:
        return read_records(Path(data.records))
    corpus = from_standard_library() if data.folder is None else from_folder(Path(data.folder), data.exclude)
    builder = Builder(
        corpus,
        tokenizer,
        min_tokens=data.min_tokens,
        max_tokens=data.max_tokens,
        evidence_share=data.evidence_share,
        seed=config.run.seed,
    )
    return build_records(builder, {task: settings.count for task, settings in enumerate(config.tasks.by_id)})


def load_samples(config: RouterTrainConfig, tokenizer: Any) -> list[Sample]:
    """Tokenised records, see `load_records`; or the samples of rows that others have tokenised and packed."""
    data, tasks = config.data, config.tasks.by_id
    options: Any = {
        "row_length": data.row_length,
        "loss_on": [task.loss_on for task in tasks],
        "loss_weight": [task.loss_weight for task in tasks],
        "weighting": data.weighting,
    }
    if data.records is not None and holds_packed_rows(Path(data.records)):
        return read_packed(Path(data.records), **options)
    return tokenise(load_records(config, tokenizer), tokenizer, template=data.template, **options)


def digest(samples: Sequence[Sample]) -> str:
    """Fingerprint of the data set, so that a resumed run can tell that anything of it changed."""
    hasher = hashlib.sha256()
    for sample in samples:
        for field in sample:
            hasher.update(np.asarray(field).tobytes())
    return hasher.hexdigest()
