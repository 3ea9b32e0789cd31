"""Teacher-forced scores of known continuations under full, all-sparse and routed attention.

One forward pass over prompt + continuation gives the log-probability of every continuation token and whether it is
the most likely one. A continuation all of whose tokens are most likely is exactly what greedy decoding would write.
Sparse heads stay sparse at the continuation's positions too, as in decoding with `CacheConfig(sparse_decode=True)`,
and the routers see the prompt only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from elastic_jax.errors import DataError
from elastic_jax.model import ElasticForCausalLM
from elastic_jax.routing import Routing

View = Literal["full", "sparse", "elastic"]
VIEWS: tuple[View, ...] = get_args(View)
_HEAD_CHUNK = 128  # continuation positions whose vocabulary logits exist at one time


@dataclass(frozen=True)
class Sample:
    """A prompt and the continuation to score after it; `key` names the sample within a run."""

    key: str
    prompt_ids: Sequence[int]
    continuation_ids: Sequence[int]

    def __len__(self) -> int:
        return len(self.prompt_ids) + len(self.continuation_ids)


@dataclass(frozen=True)
class Score:
    """What one forward pass says about one sample."""

    exact: bool
    """Every continuation token was the most likely one."""
    log_prob: float
    """Mean log-probability of a continuation token, nats."""
    msr: float
    """Share of (layer, KV head) pairs that ran sparse."""
    esr: float
    """Share of causal (query, key) pairs skipped, mean over layers."""
    esr_last_layer: float

    def to_json(self) -> dict[str, float]:
        return asdict(self)


class Scorer:
    """Scores batches with one compiled program per (rows, tokens, continuation tokens, view)."""

    def __init__(self, model: ElasticForCausalLM):
        self._config = model.config
        self._graph, self._state = nnx.split(model)
        self._run = jax.jit(partial(_score, self._graph), static_argnames=("view",))

    def score(self, samples: Sequence[Sample], view: View, *, tokens: int, rows: int, width: int) -> list[Score]:
        """Scores up to `rows` samples, padded to `[rows, tokens]` and `[rows, width]` so that shapes repeat.

        Raises `DataError` for an empty prompt or continuation, or one that does not fit.
        """
        for sample in samples:
            if not sample.prompt_ids or not 0 < len(sample.continuation_ids) <= width or len(sample) > tokens:
                raise DataError(
                    f"Sample {sample.key}: {len(sample.prompt_ids)} prompt and {len(sample.continuation_ids)} "
                    f"continuation tokens; want at least one of each, at most {width} to score, {tokens} in all."
                )
        ids = np.zeros((rows, tokens), np.int32)
        targets = np.zeros((rows, width), np.int32)
        prompts, lengths = np.ones((2, rows), np.int32)
        for row, sample in enumerate(samples):
            ids[row, : len(sample)] = [*sample.prompt_ids, *sample.continuation_ids]
            targets[row, : len(sample.continuation_ids)] = sample.continuation_ids
            prompts[row], lengths[row] = len(sample.prompt_ids), len(sample)
        log_prob, hit, routing = self._run(self._state, ids, prompts, lengths, targets, view=view)
        valid = np.arange(width) < (lengths - prompts)[:, None]
        count = np.maximum(valid.sum(-1), 1)
        columns = (
            np.all(np.asarray(hit) | ~valid, axis=-1),
            (np.asarray(log_prob) * valid).sum(-1) / count,
            np.asarray(routing.msr()),
            np.asarray(routing.esr(lengths, self._config)),
            np.asarray(routing.esr(lengths, self._config, last_layer=True)),
        )
        rows_out = list(zip(*(column.tolist() for column in columns), strict=True))
        return [Score(*values) for values in rows_out[: len(samples)]]


def _score(
    graph: nnx.GraphDef,
    state: nnx.State,
    ids_BT: jax.Array,
    prompts_B: jax.Array,
    lengths_B: jax.Array,
    targets_BW: jax.Array,
    *,
    view: View,
) -> tuple[jax.Array, jax.Array, Routing]:
    """Log-probability and argmax hit of each target, both `[B, W]`, and the routing."""
    model = nnx.merge(graph, state)
    gates = None if view == "elastic" else view
    out = model.hidden(ids_BT, lengths=lengths_B, prompt_lengths=prompts_B, gates=gates)
    width = targets_BW.shape[1]
    chunk = min(width, _HEAD_CHUNK)
    chunks = -(-width // chunk)
    # The hidden state of token i predicts token i + 1: the first target is predicted by the last prompt token.
    where = jnp.minimum(prompts_B[:, None] - 1 + jnp.arange(chunks * chunk), ids_BT.shape[1] - 1)
    hidden = jnp.take_along_axis(out.hidden_BTD, where[:, :, None], axis=1)
    targets = jnp.pad(targets_BW, ((0, 0), (0, chunks * chunk - width)))

    def in_chunks(x: jax.Array) -> jax.Array:
        return jnp.moveaxis(x.reshape(x.shape[0], chunks, chunk, *x.shape[2:]), 1, 0)

    def judge(pair: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        hidden_BcD, targets_Bc = pair
        logits = model.head(hidden_BcD)
        chosen = jnp.take_along_axis(logits, targets_Bc[:, :, None], axis=-1)[..., 0]
        return chosen - jax.nn.logsumexp(logits, axis=-1), logits.argmax(-1) == targets_Bc

    log_prob, hit = jax.lax.map(judge, (in_chunks(hidden), in_chunks(targets)))
    rows = ids_BT.shape[0]
    log_prob, hit = (jnp.moveaxis(x, 0, 1).reshape(rows, -1)[:, :width] for x in (log_prob, hit))
    return log_prob, hit, out.routing
