"""Scalar reward models behind the evaluation runner."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from elastic_jax.errors import ShapeError
from elastic_jax.layout import pad_rows
from elastic_jax.program import model_program
from elastic_jax.reward import ElasticRewardModel
from elastic_jax.routing import Gates
from eval.harness.backends.local import arm_label, check_ids, length_batches
from eval.harness.provenance import reward_digest, router_digest
from eval.harness.scoring import arm_gates
from eval.samples import Arm, Kind, Prompt, Reply


class RewardModel(Protocol):
    """What gives a conversation, tokens to its end, one number."""

    def score(self, input_ids: Any, lengths: Any) -> Any:
        """Rewards `[B]` of right-padded token ids `[B, T]` with `lengths` `[B]` tokens each, all of them arrays."""
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

    def rewards(self, ids: np.ndarray, lengths: np.ndarray, arm: Arm) -> ArrayLike:
        """Rewards `[B]` of a batch; a model that is no `ElasticRewardModel` scores alike under every arm."""
        return self.model.score(ids, lengths)

    def check(self, prompts: Sequence[Prompt]) -> None:
        """Refuses prompts that the model cannot read."""

    def run(
        self, kind: Kind, prompts: Sequence[Prompt], arm: Arm, *, batch_tokens: int, most_rows: int
    ) -> Iterator[tuple[Prompt, Reply]]:
        self.check(prompts)
        for tokens, rows, batch in length_batches(prompts, batch_tokens=batch_tokens, most_rows=most_rows):
            # Rows left over hold one token: they cost no new shape.
            ids, lengths = pad_rows([prompt.prompt_ids for prompt in batch], tokens, rows)
            rewards = np.asarray(self.rewards(ids, lengths, arm), np.float64)
            if rewards.shape != (rows,):
                raise ShapeError(f"the reward model returned {rewards.shape} for {rows} conversations; want ({rows},).")
            for prompt, reward in zip(batch, rewards.tolist(), strict=False):
                bad = None if math.isfinite(reward) else f"the reward is {reward}; want a finite number"
                yield prompt, Reply(numbers={} if bad else {"reward": reward}, error=bad)


class ElasticRewardBackend(RewardBackend):
    """An `ElasticRewardModel` with full, sparse, routed or imposed attention, as the arm says."""

    def __init__(self, model: ElasticRewardModel):
        sparse = model.config.router
        identity = {
            "reward": reward_digest(model),
            "dtype": str(model.score_head[...].dtype),
            "blocks": [sparse.sink_blocks, sparse.local_blocks, sparse.block_size],
            "pattern": sparse.pattern,
        }
        super().__init__(model, identity=identity, max_tokens=model.config.positions)
        self._router = router_digest(model.decoder)
        self._elastic = model

    def label(self, arm: Arm) -> str:
        return arm_label(arm, self._router)

    def check(self, prompts: Sequence[Prompt]) -> None:
        check_ids(prompts, self._elastic.config)

    def rewards(self, ids: np.ndarray, lengths: np.ndarray, arm: Arm) -> ArrayLike:
        gates = arm_gates(arm, self._elastic.config, len(ids))
        return _rewards(self._elastic, jnp.asarray(ids), jnp.asarray(lengths), gates, jnp.float32(arm.router_bias))


@model_program
def _rewards(
    model: ElasticRewardModel,
    ids_BT: jax.Array,
    lengths_B: jax.Array,
    gates: Gates | None,
    router_bias: jax.Array,
) -> jax.Array:
    return model(ids_BT, lengths=lengths_B, routing=gates, router_bias=router_bias)
