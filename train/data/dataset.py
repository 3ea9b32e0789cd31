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
from train.data.packing import RowShape, Sample, tokenise
from train.data.sources import read_samples


def load_samples(config: RouterTrainConfig, tokenizer: Any) -> list[Sample]:
    """The samples that the settings ask for: read from a file, or built from a folder or the standard library.

    Raises:
        DataError: nothing there, a malformed file (named with its line), or a sample longer than a row.
    """
    data = config.data
    if data.records is not None:
        return read_samples(Path(data.records), tokenizer, config)
    corpus = from_standard_library() if data.folder is None else from_folder(Path(data.folder), data.exclude)
    builder = Builder(corpus, tokenizer, data, seed=config.run.seed)
    counts = {task: settings.count for task, settings in enumerate(config.tasks.by_id)}
    return tokenise(build_records(builder, counts), tokenizer, config)


def row_shape(config: RouterTrainConfig) -> RowShape:
    """The shape of the rows of a router training run."""
    return RowShape(config.data.row_length, config.router.block_size, config.data.max_segments)


def digest(samples: Sequence[Sample]) -> str:
    """Fingerprint of the data set: a run that is resumed compares it, to find out whether the data changed."""
    hasher = hashlib.sha256()
    for sample in samples:
        for field in sample:
            hasher.update(np.asarray(field).tobytes())
    return hasher.hexdigest()
