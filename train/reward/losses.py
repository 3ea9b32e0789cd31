"""Losses of judges and scalar reward models; means over a batch, float32 (LongRM, arXiv 2510.06915, section 3).

Letters: P preference pairs, V rejected responses of each, T response tokens. A log-probability of a response is the
mean over its tokens unless a function says otherwise, so that length alone is not rewarded.
"""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp
from jax.nn import log_sigmoid

Rejects = Literal["mean", "each"]
"""`mean`: the rejected responses of a pair are averaged before they are compared; `each`: compared one by one."""


def weighted_mean(values: jax.Array, weights: jax.Array) -> jax.Array:
    """Sum of weights * values over the sum of weights, over the last axis; 0 where all weights are 0."""
    return (values * weights).sum(-1) / jnp.maximum(weights.sum(-1), 1e-8)


def simpo_loss(
    chosen_P: jax.Array,
    rejected_PV: jax.Array,
    *,
    beta: float = 2.5,
    gamma: float = 0.5,
    rejects: Rejects = "mean",
    form: Literal["sigmoid", "hinge"] = "sigmoid",
    label_smoothing: float = 0.0,
    nll_weight: float = 0.0,
) -> jax.Array:
    """SimPO over mean log-probabilities, with several rejected responses (LOGO).

    Args:
        chosen_P: mean log-probability of each chosen response.
        rejected_PV: the same of the rejected ones.
        beta: factor of the difference.
        gamma: margin that beta * difference is asked to exceed.
        rejects: see `Rejects`.
        form: negative log-sigmoid, or the hinge at 1.
        label_smoothing: probability that a label is the wrong way round.
        nll_weight: weight of the chosen responses' negative log-likelihood.
    """
    logits = beta * _differences(chosen_P, rejected_PV, rejects) - gamma
    if form == "hinge":
        loss = jnp.maximum(0.0, 1.0 - logits).mean()
    else:
        loss = _smoothed(logits, label_smoothing).mean()
    return loss - nll_weight * chosen_P.mean()


def bradley_terry_loss(
    chosen_P: jax.Array,
    rejected_PV: jax.Array,
    *,
    margin_P: jax.Array | float = 0.0,
    centring: float = 0.0,
    rejects: Rejects = "mean",
) -> jax.Array:
    """Negative log-probability that the chosen response wins, from scalar scores.

    Args:
        chosen_P: score of each chosen response.
        rejected_PV: scores of the rejected ones.
        margin_P: how much better the chosen response has to be.
        centring: weight of (chosen + rejected)^2, which keeps scores around 0.
        rejects: see `Rejects`.
    """
    margin = jnp.broadcast_to(jnp.asarray(margin_P), chosen_P.shape)[:, None]
    loss = -log_sigmoid(_differences(chosen_P, rejected_PV, rejects) - margin).mean()
    if not centring:
        return loss
    sums = chosen_P[:, None] + (rejected_PV.mean(-1, keepdims=True) if rejects == "mean" else rejected_PV)
    return loss + centring * (sums**2).mean()


def dpo_loss(
    chosen_P: jax.Array,
    rejected_PV: jax.Array,
    reference_chosen_P: jax.Array,
    reference_rejected_PV: jax.Array,
    *,
    beta: float = 0.1,
    label_smoothing: float = 0.0,
    form: Literal["sigmoid", "ipo"] = "sigmoid",
    rejects: Rejects = "mean",
) -> jax.Array:
    """DPO (or IPO) over summed log-probabilities of the model and of a frozen reference."""
    logits = _differences(chosen_P, rejected_PV, rejects)
    logits -= _differences(reference_chosen_P, reference_rejected_PV, rejects)
    if form == "ipo":
        return ((logits - 0.5 / beta) ** 2).mean()
    return _smoothed(beta * logits, label_smoothing).mean()


def accuracy(chosen_P: jax.Array, rejected_PV: jax.Array) -> jax.Array:
    """Share of pairs whose chosen response beats the mean of the rejected ones; a tie does not."""
    return (chosen_P > rejected_PV.mean(-1)).mean(dtype=jnp.float32)


def _differences(chosen_P: jax.Array, rejected_PV: jax.Array, rejects: Rejects) -> jax.Array:
    """Chosen - rejected: `[P, 1]` or `[P, V]`."""
    return chosen_P[:, None] - (rejected_PV.mean(-1, keepdims=True) if rejects == "mean" else rejected_PV)


def _smoothed(logits: jax.Array, smoothing: float) -> jax.Array:
    return -(1.0 - smoothing) * log_sigmoid(logits) - smoothing * log_sigmoid(-logits)
