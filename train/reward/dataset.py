"""From the data settings to tokenised samples, and from those to batches."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from elastic_jax.text.split import Split
from train.data.dataset import digest
from train.data.packing import RowShape
from train.data.pipeline import in_batches, make_pipeline, pack
from train.reward.config import BradleyTerryTrainConfig, RecordsConfig, RewardModelSettings, SftConfig, SimpoTrainConfig
from train.reward.data.pairs import PairBatch, PairSample, pair_batches, pair_pipeline
from train.reward.data.readers import read_judge_records, read_preferences
from train.reward.data.samples import judge_samples, pair_samples
from train.reward.examples.generate import judge_preferences, judge_records, records


class Data(NamedTuple):
    """Samples of one kind; `report` says what became of the records."""

    train: list[Any]
    held_out: list[Any]
    report: str


class Batches(NamedTuple):
    """What a run reads."""

    stream: Any
    """Endless iterator of batches with leading axes [accumulate, rows], with `get_state` and `set_state`."""
    held_out: list[Any]
    """Batches with the leading axis [rows]."""
    per_epoch: int
    """Optimizer steps that see about every sample once."""
    fingerprint: str
    """Digest of what is trained on."""
    held_out_fingerprint: str


def load_pairs(config: SimpoTrainConfig | BradleyTerryTrainConfig, tokenizer: Any) -> Data:
    """Tokenised comparisons, read or generated as the settings say.

    Raises:
        DataError: a malformed file (named with its line), or one side without a usable record.
    """
    data = config.data
    generate = judge_preferences if isinstance(config, SimpoTrainConfig) else records
    return _load(
        config,
        read_preferences,
        partial(generate, rejects=data.rejects),
        lambda found: pair_samples(
            found,
            tokenizer,
            prompt_length=data.prompt_tokens,
            response_length=data.response_tokens,
            rejects=data.rejects,
        ),
    )


def load_judgements(config: SftConfig, tokenizer: Any) -> Data:
    """Tokenised judgements, read or generated as the settings say; raises as `load_pairs`."""
    return _load(
        config,
        read_judge_records,
        judge_records,
        lambda found: judge_samples(found, tokenizer, row_length=config.data.row_length),
    )


def _load(config: RewardModelSettings, read: Any, generate: Any, tokenise: Any) -> Data:
    """Samples to train on and held-out ones, each from a file or generated."""
    data: RecordsConfig = config.data  # pyrefly: ignore[missing-attribute]

    def side(path: str | None, count: int, split: Split) -> tuple[list[Any], str]:
        if path is None:
            found = generate(count, config.run.seed, split, buildings=data.generated_buildings)
            origin = f"{count} generated"
        else:
            found, tally = read(Path(path))
            origin = f"{path}: {tally}"
        samples, tally = tokenise(found)
        return samples, f"{origin}\n  used: {tally}"

    train, of_train = side(data.records, data.generated, "train")
    held_out, of_held_out = side(data.held_out, data.generated_held_out, "evaluation")
    return Data(train, held_out, f"train: {of_train}\nheld out: {of_held_out}")


def pair_stream(data: Data, config: SimpoTrainConfig | BradleyTerryTrainConfig) -> Batches:
    """Comparisons as batches of static shapes."""
    shape = dict(
        prompt_length=config.data.prompt_tokens,
        response_length=config.data.response_tokens,
        rejects=config.data.rejects,
    )
    optim = config.optim
    stream = pair_pipeline(data.train, **shape, rows=optim.rows, accumulate=optim.accumulate, seed=config.run.seed)
    held_out = [_first(batch, real) for batch, real in pair_batches(data.held_out, **shape, rows=optim.rows)]
    per_epoch = max(len(data.train) // (optim.rows * optim.accumulate), 1)
    return Batches(iter(stream), held_out, per_epoch, _pair_digest(data.train), _pair_digest(data.held_out))


def judge_stream(data: Data, config: SftConfig, *, block_size: int) -> Batches:
    """Judgements as packed rows; the held-out ones stand alone in theirs."""
    optim, shape = config.optim, RowShape(config.data.row_length, block_size, config.data.max_segments)
    stream = make_pipeline(data.train, shape, rows=optim.rows, accumulate=optim.accumulate, seed=config.run.seed)
    blocks = [-(-len(sample.input_ids) // block_size) for sample in data.train]
    per_epoch = max(round(sum(blocks) * block_size / (shape.length * optim.rows * optim.accumulate)), 1)
    longest = max(len(sample.input_ids) for sample in data.held_out)
    alone = shape._replace(length=-(-longest // block_size) * block_size)
    held_out = in_batches([pack([sample], alone) for sample in data.held_out], optim.rows, alone)
    return Batches(iter(stream), held_out, per_epoch, digest(data.train), digest(data.held_out))


def _first(batch: PairBatch, real: int) -> PairBatch:
    """The batch without responses, and so without weight, in the rows after the first `real` ones."""
    there = np.arange(len(batch.prompt_lengths)) < real
    return batch._replace(response_lengths=batch.response_lengths * there[:, None])


def _pair_digest(samples: Sequence[PairSample]) -> str:
    hasher = hashlib.sha256()
    for sample in samples:
        for ids in (sample.prompt_ids, *sample.response_ids):
            hasher.update(len(ids).to_bytes(8, "little") + ids.tobytes())
        hasher.update(np.float64(sample.margin).tobytes())
    return hasher.hexdigest()
