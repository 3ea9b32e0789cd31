"""Teacher-forced scores of known continuations under full, all-sparse and routed attention.

One forward pass over prompt + continuation gives the log-probability of every continuation token and whether it is
the most likely one. A continuation all of whose tokens are most likely is exactly what greedy decoding would write.
Sparse heads stay sparse at the continuation's positions too, as in decoding with `CacheConfig(sparse_decode=True)`,
and the routers see the prompt only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from elastic_jax.config import ModelConfig
from elastic_jax.errors import DataError
from elastic_jax.generation import not_finite
from elastic_jax.layout import pad_rows
from elastic_jax.model import ElasticForCausalLM
from elastic_jax.routing import Gates, Routing, gates_from
from eval.samples import Arm, Prompt

_HEAD_CHUNK = 128  # continuation positions whose vocabulary logits exist at one time


class Scorer:
    """Scores batches with one compiled program per (rows, tokens, targets, kind of routing)."""

    def __init__(self, model: ElasticForCausalLM):
        self._config = model.config
        self._graph, self._state = nnx.split(model)
        self._run = jax.jit(partial(_score, self._graph), static_argnames="one_place")

    def score(
        self, prompts: Sequence[Prompt], arm: Arm, *, tokens: int, rows: int, width: int
    ) -> list[dict[str, float]]:
        """Scores the continuations of up to `rows` prompts, padded to `[rows, tokens]` and `[rows, width]`.

        Numbers of a prompt: `exact` (every continuation token was the most likely one), `hits` (share of those that
        were), `log_prob` (mean of a token, nats; `log_prob_0`, ... of each of several parts), and the sparsity.

        Raises:
            DataError: an empty prompt or continuation, or one that does not fit.
        """
        for prompt in prompts:
            if not len(prompt.prompt_ids) or not 0 < len(prompt.continuation_ids) <= width or len(prompt) > tokens:
                raise DataError(
                    f"Sample {prompt.sample.uid}: {len(prompt.prompt_ids)} prompt and {len(prompt.continuation_ids)} "
                    f"continuation tokens; want at least one of each, at most {width} to score, {tokens} in all."
                )
        texts = [(prompt.prompt_ids, prompt.continuation_ids) for prompt in prompts]
        batch = _Batch.padded(texts, [ids for _, ids in texts], tokens=tokens, rows=rows, width=width)
        log_prob, hit, routing = self._forward(batch, arm, one_place=False)
        valid = np.arange(width) < (batch.lengths - batch.prompts)[:, None]
        count = np.maximum(valid.sum(-1), 1)
        exact = np.all(np.asarray(hit) | ~valid, axis=-1)
        mean = (np.asarray(log_prob) * valid).sum(-1) / count
        hits = (np.asarray(hit) & valid).sum(-1) / count
        self._check_finite(mean[: len(prompts)], prompts, batch, arm)
        scores = []
        for row, prompt in enumerate(prompts):
            each = np.asarray(log_prob)[row, : len(prompt.continuation_ids)]
            parts = np.array_split(each, prompt.parts) if prompt.parts > 1 else ()
            numbers = {"exact": bool(exact[row]), "log_prob": float(mean[row])}
            numbers |= routing.measures(batch.lengths, self._config, row) | {"hits": float(hits[row])}
            scores.append(numbers | {f"log_prob_{number}": float(part.mean()) for number, part in enumerate(parts)})
        return scores

    def choose(
        self, prompts: Sequence[Prompt], arm: Arm, *, tokens: int, rows: int
    ) -> list[tuple[list[float], dict[str, float]]]:
        """Log-probability of each option of each prompt, by the first token in which options differ, and sparsity.

        What all options begin with is read as part of the prompt. One forward pass, whatever the number of options.

        Raises:
            DataError: no options, options that do not differ in one token, a different number of them, or a prompt
                too long.
        """
        texts, targets = [], []
        for prompt in prompts:
            if not prompt.option_ids:
                raise DataError(f"Sample {prompt.sample.uid} has no options; want at least two to choose from.")
            shared = _shared_length(prompt.option_ids)
            first = [option[shared] for option in prompt.option_ids if len(option) > shared]
            if len(set(first)) < len(prompt.option_ids) or len(first) != len(prompts[0].option_ids):
                raise DataError(
                    f"Sample {prompt.sample.uid}: options {list(prompt.option_ids)} (token ids); want the same number "
                    "for every sample, each going on with a token of its own where they differ."
                )
            texts.append((prompt.prompt_ids, prompt.option_ids[0][:shared]))
            targets.append(first)
            if sum(map(len, texts[-1])) > tokens:
                raise DataError(f"Sample {prompt.sample.uid} has more than {tokens} tokens.")
        batch = _Batch.padded(texts, targets, tokens=tokens, rows=rows, width=len(targets[0]))
        log_prob, _, routing = self._forward(batch, arm, one_place=True)
        self._check_finite(np.asarray(log_prob).sum(-1)[: len(prompts)], prompts, batch, arm)
        return [
            (np.asarray(log_prob)[row].tolist(), routing.measures(batch.lengths, self._config, row))
            for row in range(len(prompts))
        ]

    def _check_finite(self, results: np.ndarray, prompts: Sequence[Prompt], batch: _Batch, arm: Arm) -> None:
        if np.isfinite(results).all():
            return
        row = int(np.argmin(np.isfinite(results)))
        ids = np.asarray(batch.ids)[row, : batch.lengths[row]].tolist()
        model = nnx.merge(self._graph, self._state)
        gates = arm_gates(arm, self._config, 1)
        raise not_finite(model, ids, gates, f"Sample {prompts[row].sample.uid}: log-probabilities")

    def _forward(self, batch: _Batch, arm: Arm, *, one_place: bool) -> tuple[jax.Array, jax.Array, Routing]:
        return self._run(
            self._state,
            batch.ids,
            batch.prompts,
            batch.lengths,
            batch.targets,
            jnp.float32(arm.router_bias),
            arm_gates(arm, self._config, len(batch.ids)),
            one_place=one_place,
        )


@dataclass(frozen=True)
class _Batch:
    ids: np.ndarray
    prompts: np.ndarray
    lengths: np.ndarray
    targets: np.ndarray

    @classmethod
    def padded(
        cls,
        texts: Sequence[tuple[Sequence[int] | np.ndarray, Sequence[int]]],
        targets: Sequence[Sequence[int]],
        *,
        tokens: int,
        rows: int,
        width: int,
    ) -> _Batch:
        """Of (prompt, rest) token ids and target ids; rows beyond them hold one token each."""
        ids, lengths = pad_rows([[*prompt, *rest] for prompt, rest in texts], tokens, rows)
        prompts = np.ones(rows, np.int32)
        prompts[: len(texts)] = [len(prompt) for prompt, _ in texts]
        return cls(ids, prompts, lengths, pad_rows(targets, width, rows)[0])


def arm_gates(arm: Arm, config: ModelConfig, rows: int) -> Gates | None:
    """Gates of an arm for `rows` sequences: of its imposed modes or its view; None where the routers decide."""
    if arm.modes_LK is not None:
        modes_LK = jnp.asarray(arm.modes_LK, jnp.int32)
        return gates_from(jnp.repeat(modes_LK[:, None], rows, axis=1), config, rows)
    return gates_from(None if arm.view == "elastic" else arm.view, config, rows)


def _shared_length(options: Sequence[Sequence[int]]) -> int:
    """How many tokens all options begin with alike."""
    alike = 0
    while all(len(option) > alike and option[alike] == options[0][alike] for option in options):
        alike += 1
    return alike


def _score(
    graph: nnx.GraphDef,
    state: nnx.State,
    ids_BT: jax.Array,
    prompts_B: jax.Array,
    lengths_B: jax.Array,
    targets_BW: jax.Array,
    router_bias: jax.Array,
    gates: Gates | None,
    *,
    one_place: bool,
) -> tuple[jax.Array, jax.Array, Routing]:
    """Log-probability and argmax hit of each target, both `[B, W]`, and the routing.

    The targets follow each other after the prompt, or with `one_place` all stand after the last token.
    """
    model = nnx.merge(graph, state)
    out = model.hidden(ids_BT, lengths=lengths_B, prompt_lengths=prompts_B, gates=gates, router_bias=router_bias)
    width = targets_BW.shape[1]
    chunk = min(width, _HEAD_CHUNK)
    chunks = -(-width // chunk)
    # The hidden state of token i predicts token i + 1: the first target is predicted by the last prompt token.
    if one_place:
        where = jnp.broadcast_to(lengths_B[:, None] - 1, (len(ids_BT), chunks * chunk))
    else:
        where = jnp.minimum(prompts_B[:, None] - 1 + jnp.arange(chunks * chunk)[None], ids_BT.shape[1] - 1)
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
