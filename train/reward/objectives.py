"""What each kind of training sums over a micro-batch.

Every metric is a sum over pairs or learnt tokens, to be divided by the number in the whole batch: so the gradient is
the same however a batch is cut into micro-batches or spread over devices.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from elastic_jax.shared_prefix import separate_rows_hidden, shared_prefix_hidden
from elastic_jax.weights.names import SCORE
from train.data.packing import Rows
from train.reward.config import BradleyTerryTrainConfig, PairSettings, SftConfig, SimpoTrainConfig
from train.reward.data.pairs import PairBatch
from train.reward.losses import bradley_terry_loss, simpo_loss, weighted_mean, wins
from train.reward.weights import Assembly
from train.token_losses import label_log_probs

Arrays = Mapping[str, jax.Array]


class Objective(NamedTuple):
    """A loss over batches of one type; leading axes of a batch are free for `weight` and `tokens`."""

    sums: Callable[[Arrays, Arrays, Any], dict[str, jax.Array]]
    """`sums(params, frozen, micro_batch)`: `loss` and other metrics, each summed with the weights of `weight`."""
    weight: Callable[[Any], jax.Array]
    """What the sums over a batch are divided by."""
    tokens: Callable[[Any], jax.Array]
    """Tokens of a batch without padding."""


def sft_objective(assembly: Assembly, config: SftConfig) -> Objective:
    """Negative log-likelihood of the judgements, every learnt token with its weight; metrics `loss`."""

    def sums(params: Arrays, frozen: Arrays, rows: Rows) -> dict[str, jax.Array]:
        model = assembly.decoder(params, frozen)
        hidden = model.hidden(
            rows.input_ids,
            segment_ids=rows.segment_ids,
            prompt_lengths=rows.prompt_lengths,
            num_segments=config.data.max_segments,
            gates=_gates(config.routing),
            remat=config.remat,
        ).hidden_BTD
        log_probs = label_log_probs(hidden, model.head_kernel(), rows.labels, rows.weights > 0)
        return {"loss": -(rows.weights * log_probs).sum()}

    return Objective(sums, lambda rows: rows.weights.sum(), lambda rows: (rows.segment_ids > 0).sum())


def simpo_objective(assembly: Assembly, config: SimpoTrainConfig) -> Objective:
    """SimPO; metrics `loss`, `accuracy`, `margin` (of the mean log-probabilities), `nll` of the chosen responses."""
    loss = config.loss

    def sums(params: Arrays, frozen: Arrays, batch: PairBatch) -> dict[str, jax.Array]:
        model = assembly.decoder(params, frozen)
        hidden = _hidden(model, batch, config)[:, :, :-1]
        needed = jnp.arange(batch.response_ids.shape[-1])[None, None] < batch.response_lengths[..., None]
        log_probs = label_log_probs(hidden, model.head_kernel(), batch.response_ids, needed)
        means_BV = weighted_mean(log_probs, needed.astype(jnp.float32))
        chosen, rejected, present = means_BV[:, 0], means_BV[:, 1:], _present(batch)
        losses = simpo_loss(
            chosen,
            rejected,
            present,
            beta=loss.beta,
            gamma=loss.gamma,
            rejects=loss.rejects,
            form=loss.form,
            label_smoothing=loss.label_smoothing,
            nll_weight=loss.nll_weight,
        )
        return _over_pairs(batch, chosen, rejected, losses) | {"nll": -(chosen * _real(batch)).sum()}

    return Objective(sums, _pairs, _pair_tokens)


def bradley_terry_objective(assembly: Assembly, config: BradleyTerryTrainConfig) -> Objective:
    """Bradley-Terry; metrics `loss`, `accuracy`, `margin` (of the scores), `score` of the chosen responses."""
    loss = config.loss

    def sums(params: Arrays, frozen: Arrays, batch: PairBatch) -> dict[str, jax.Array]:
        hidden = _hidden(assembly.decoder(params, frozen), batch, config)
        last = jnp.take_along_axis(hidden, batch.response_lengths[..., None, None], axis=2)[:, :, 0]
        scores_BV = jnp.dot(last, params[SCORE][:, 0].astype(last.dtype), preferred_element_type=jnp.float32)
        chosen, rejected, present = scores_BV[:, 0], scores_BV[:, 1:], _present(batch)
        losses = bradley_terry_loss(
            chosen,
            rejected,
            present,
            margin_P=batch.margin if loss.use_margin else 0.0,
            centring=loss.centring,
            rejects=loss.rejects,
        )
        return _over_pairs(batch, chosen, rejected, losses) | {"score": (chosen * _real(batch)).sum()}

    return Objective(sums, _pairs, _pair_tokens)


def _hidden(model: Any, batch: PairBatch, config: PairSettings) -> jax.Array:
    """`[B, 1 + V, R + 1, D]`; see `SharedPrefix`."""
    rows = batch.prompt_ids, batch.prompt_lengths, batch.response_ids, batch.response_lengths
    routing = _gates(config.routing)
    if config.layout == "shared":
        return shared_prefix_hidden(model, *rows, routing=routing, remat=bool(config.remat)).hidden
    return separate_rows_hidden(model, *rows, routing=routing, remat=config.remat).hidden


def _gates(routing: str) -> str | None:
    return None if routing == "routers" else routing


def _over_pairs(batch: PairBatch, chosen: jax.Array, rejected: jax.Array, losses: jax.Array) -> dict[str, jax.Array]:
    present, real = _present(batch), _real(batch)
    return {
        "loss": (losses * real).sum(),
        "accuracy": (wins(chosen, rejected, present) * real).sum(),
        "margin": ((chosen - weighted_mean(rejected, present)) * real).sum(),
    }


def _present(batch: PairBatch) -> jax.Array:
    """1.0 for each rejected response that is there, `[B, V]`."""
    return (batch.response_lengths[..., 1:] > 0).astype(jnp.float32)


def _real(batch: PairBatch) -> jax.Array:
    """1.0 for each pair, 0.0 for rows that fill up a batch, `[B]`."""
    return (batch.response_lengths[..., 0] > 0).astype(jnp.float32)


def _pairs(batch: PairBatch) -> jax.Array:
    return _real(batch).sum()


def _pair_tokens(batch: PairBatch) -> jax.Array:
    return batch.prompt_lengths.sum(where=batch.response_lengths[..., 0] > 0) + batch.response_lengths.sum()
