"""From the data settings to tokenised samples, and from those to batches."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from train.data.dataset import digest
from train.data.packing import Rows, Sample
from train.data.pipeline import make_pipeline
from train.reward.config import AdamConfig, BradleyTerryTrainConfig, SftConfig, SimpoTrainConfig
from train.reward.data.pairs import PairBatch, PairSample, pair_batches, pair_pipeline
from train.reward.data.readers import read_judge_records, read_preferences
from train.reward.data.samples import judge_samples, pair_samples
from train.reward.examples.generate import judge_preferences, judge_records, records


class Data(NamedTuple):
    """Samples of one kind; what became of the records is told in `report`."""

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


def load_pairs(config: SimpoTrainConfig | BradleyTerryTrainConfig, tokenizer: Any) -> Data:
    """Tokenised comparisons, read or generated as the settings say.

    Raises:
        DataError: a malformed file (named with its line), or one side without a usable record.
    """
    data = config.data
    generate = judge_preferences if isinstance(config, SimpoTrainConfig) else records

    def side(path: str | None, count: int, split: Any) -> tuple[list[PairSample], str]:
        if path is None:
            found = generate(count, config.run.seed, split, rejects=data.rejects, buildings=data.generated_buildings)
            told = f"{count} generated"
        else:
            found, tally = read_preferences(Path(path))
            told = f"{path}: {tally}"
        samples, tally = pair_samples(
            found, tokenizer, prompt_length=data.prompt_tokens, response_length=data.response_tokens
        )
        return samples, f"{told}\n  used: {tally}"

    return _both(side, config)


def load_judgements(config: SftConfig, tokenizer: Any) -> Data:
    """Tokenised judgements, read or generated as the settings say; raises as `load_pairs`."""
    data = config.data

    def side(path: str | None, count: int, split: Any) -> tuple[list[Sample], str]:
        if path is None:
            found = judge_records(count, config.run.seed, split, buildings=data.generated_buildings)
            told = f"{count} generated"
        else:
            found, tally = read_judge_records(Path(path))
            told = f"{path}: {tally}"
        samples, tally = judge_samples(found, tokenizer, row_length=data.row_length)
        return samples, f"{told}\n  used: {tally}"

    return _both(side, config)


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
    return Batches(iter(stream), held_out, per_epoch, _pair_digest(data.train))


def judge_stream(data: Data, config: SftConfig, *, block_size: int) -> Batches:
    """Judgements as packed rows; the held-out ones stand alone in theirs."""
    optim, length = config.optim, config.data.row_length
    stream = make_pipeline(
        data.train,
        row_length=length,
        block_size=block_size,
        max_segments=config.data.max_segments,
        rows=optim.rows,
        accumulate=optim.accumulate,
        seed=config.run.seed,
    )
    blocks = sum(-(-len(sample.input_ids) // block_size) for sample in data.train)
    per_epoch = max(round(blocks * block_size / (length * optim.rows * optim.accumulate)), 1)
    held_out = _alone(data.held_out, optim, max_segments=config.data.max_segments, block_size=block_size)
    return Batches(iter(stream), held_out, per_epoch, digest(data.train))


def _both(side: Any, config: Any) -> Data:
    data = config.data
    train, told = side(data.records, data.generated, "train")
    held_out, told_too = side(data.held_out, data.generated_held_out, "evaluation")
    return Data(train, held_out, f"train: {told}\nheld out: {told_too}")


def _first(batch: PairBatch, real: int) -> PairBatch:
    """The batch with no responses, so no weight, beyond its first `real` rows."""
    there = np.arange(len(batch.prompt_lengths)) < real
    return batch._replace(response_lengths=batch.response_lengths * there[:, None])


def _alone(samples: Sequence[Sample], optim: AdamConfig, *, max_segments: int, block_size: int) -> list[Rows]:
    """One sample to a row, all rows of one length, `optim.rows` to a batch; the last is filled up with empty rows."""
    longest = max(len(sample.input_ids) for sample in samples)
    length = -(-longest // block_size) * block_size
    count = -(-len(samples) // optim.rows) * optim.rows
    tokens, at = np.zeros((3, count, length), np.int32), np.arange(max_segments)
    weights = np.zeros((count, length), np.float32)
    prompts = np.zeros(count, np.int32)
    for row, sample in enumerate(samples):
        size = len(sample.input_ids)
        tokens[:, row, :size] = sample.input_ids, np.ones(size), sample.labels
        weights[row, :size] = sample.weights
        prompts[row] = sample.prompt_lengths[0]
    task_ids = np.where((at == 0) & (prompts[:, None] > 0), 0, -1).astype(np.int32)
    whole = Rows(tokens[0], tokens[1], tokens[2], weights, prompts[:, None] * (at == 0).astype(np.int32), task_ids)
    starts = range(0, count, optim.rows)
    return [Rows(*(field[start : start + optim.rows] for field in whole)) for start in starts]


def _pair_digest(samples: Sequence[PairSample]) -> str:
    hasher = hashlib.sha256()
    for sample in samples:
        for ids in (sample.prompt_ids, *sample.response_ids):
            hasher.update(len(ids).to_bytes(8, "little") + ids.tobytes())
        hasher.update(np.float64(sample.margin).tobytes())
    return hasher.hexdigest()
