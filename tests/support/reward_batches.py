"""Random batches for the tests of reward training: shapes of the tiny decoder, blocks of 16 tokens."""

import numpy as np
from tiny import CONFIG

from train.data.packing import Rows
from train.reward.data.pairs import PairBatch

P, V, R = 32, 2, 7


def pair_batch(count: int = 4, seed: int = 0) -> PairBatch:
    """`count` pairs without leading axes but their own; the last one has one rejected response only."""
    rng = np.random.default_rng(seed)
    ids = rng.integers(0, CONFIG.vocab_size, (count, P + (1 + V) * R)).astype(np.int32)
    lengths = rng.integers(1, R + 1, (count, 1 + V)).astype(np.int32)
    lengths[-1, -1] = 0
    prompts = rng.integers(1, P + 1, count).astype(np.int32)
    margin = rng.random(count).astype(np.float32)
    return PairBatch(ids[:, :P], prompts, ids[:, P:].reshape(count, 1 + V, R), lengths, margin)


def judge_rows(count: int = 4, seed: int = 0, length: int = 32) -> Rows:
    """Rows of a sample that fills one half and a shorter one in the other; the second half of each half is learnt."""
    rng = np.random.default_rng(seed)
    ids = rng.integers(0, CONFIG.vocab_size, (count, length + 1)).astype(np.int32)
    half, at = length // 2, np.arange(length)
    second = rng.integers(2, half + 1, count)
    segments = np.where(at < half, 1, np.where(at < half + second[:, None], 2, 0)).astype(np.int32)
    last = (at == half - 1) | (at == half - 1 + second[:, None])
    weights = ((segments > 0) & (at % half >= half // 2) & ~last).astype(np.float32)
    prompts = np.stack([np.full(count, half // 2), np.minimum(second, half // 2)], axis=1).astype(np.int32)
    return Rows(ids[:, :-1], segments, ids[:, 1:], weights, prompts, np.zeros((count, 2), np.int32))


def cut(batch, accumulate: int):
    """The leading axis divided into [accumulate, rows]."""
    return type(batch)(*(field.reshape(accumulate, -1, *field.shape[1:]) for field in batch))
