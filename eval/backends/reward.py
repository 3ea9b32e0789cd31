"""Scalar reward models behind the evaluation runner."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import ArrayLike

from elastic_jax.errors import ShapeError
from eval.arms import Arm
from eval.backends.local import length_batches
from eval.samples import Kind, Prompt, Reply


class RewardModel(Protocol):
    """What gives a conversation, tokens to its end, one number."""

    def score(self, input_ids: np.ndarray, lengths: np.ndarray) -> ArrayLike:
        """Rewards `[B]` of right-padded token ids `[B, T]` with `lengths` `[B]` tokens each."""
        ...


class RewardBackend:
    """Scores conversations that end with the answer to be judged, in batches of about the same length.

    Args:
        identity: what results depend on (weights, number format); a journal of another identity is refused.
        max_tokens: the model's window; None for no bound.
    """

    kinds: frozenset[Kind] = frozenset(("reward",))

    def __init__(self, model: RewardModel, *, identity: Mapping[str, Any], max_tokens: int | None):
        self.model = model
        self.max_tokens = max_tokens
        self._identity = dict(identity)

    def identity(self) -> dict[str, Any]:
        return self._identity

    def label(self, arm: Arm) -> str:
        return arm.name

    def run(
        self, kind: Kind, prompts: Sequence[Prompt], arm: Arm, *, batch_tokens: int, most_rows: int
    ) -> Iterator[tuple[Prompt, Reply]]:
        for tokens, rows, batch in length_batches(prompts, batch_tokens=batch_tokens, most_rows=most_rows):
            ids = np.zeros((rows, tokens), np.int32)
            lengths = np.ones(rows, np.int32)  # rows left over hold one token: they cost no new shape
            for row, prompt in enumerate(batch):
                ids[row, : len(prompt.prompt_ids)] = prompt.prompt_ids
                lengths[row] = len(prompt.prompt_ids)
            rewards = np.asarray(self.model.score(ids, lengths), np.float64)
            if rewards.shape != (rows,):
                raise ShapeError(f"the reward model returned {rewards.shape} for {rows} conversations; want ({rows},).")
            for prompt, reward in zip(batch, rewards.tolist(), strict=False):
                bad = None if math.isfinite(reward) else f"the reward is {reward}; want a finite number"
                yield prompt, Reply(numbers={} if bad else {"reward": reward}, error=bad)
