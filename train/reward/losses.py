"""Losses of judges and scalar reward models, one number per pair, float32 (LongRM, arXiv 2510.06915, section 3).

Letters: P preference pairs, V rejected responses of each. A log-probability of a response is the mean over its tokens
unless a function says otherwise, so that length alone is not rewarded. A batch's loss is the mean over its pairs; the
caller takes it, so that it may be gathered from parts of any size.
"""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp
from jax.nn import log_sigmoid

from train.reward.config import Rejects


def weighted_mean(values: jax.Array, weights: jax.Array) -> jax.Array:
    """Sum of weights * values over the sum of weights, over the last axis; 0 where all weights are 0."""
    return (values * weights).sum(-1) / jnp.maximum(weights.sum(-1), 1e-8)


def simpo_loss(
    chosen_P: jax.Array,
    rejected_PV: jax.Array,
    present_PV: jax.Array,
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
        present_PV: 1.0 where there is such a response, 0.0 where there is none.
        beta: factor of the difference.
        gamma: margin that beta * difference is asked to exceed.
        rejects: see `Rejects`.
        form: negative log-sigmoid, or the hinge at 1.
        label_smoothing: probability that a label is the wrong way round.
        nll_weight: weight of the chosen responses' negative log-likelihood.
    """

    def loss(difference: jax.Array) -> jax.Array:
        logits = beta * difference - gamma
        return jnp.maximum(0.0, 1.0 - logits) if form == "hinge" else _smoothed(logits, label_smoothing)

    return _compared(loss, chosen_P, rejected_PV, present_PV, rejects) - nll_weight * chosen_P


def bradley_terry_loss(
    chosen_P: jax.Array,
    rejected_PV: jax.Array,
    present_PV: jax.Array,
    *,
    margin_P: jax.Array | float = 0.0,
    centring: float = 0.0,
    rejects: Rejects = "mean",
) -> jax.Array:
    """Negative log-probability that the chosen response wins, from scalar scores.

    Args:
        chosen_P: score of each chosen response.
        rejected_PV: scores of the rejected ones.
        present_PV: 1.0 where there is such a response, 0.0 where there is none.
        margin_P: how much better the chosen response has to be.
        centring: weight of (chosen + rejected)^2, which keeps scores around 0.
        rejects: see `Rejects`.
    """
    margin_P1 = jnp.broadcast_to(jnp.asarray(margin_P), chosen_P.shape)[:, None]

    def loss(difference: jax.Array) -> jax.Array:
        sums = 2 * chosen_P[:, None] - difference
        return -log_sigmoid(difference - margin_P1) + centring * sums**2

    return _compared(loss, chosen_P, rejected_PV, present_PV, rejects)


def dpo_loss(
    chosen_P: jax.Array,
    rejected_PV: jax.Array,
    present_PV: jax.Array,
    reference_chosen_P: jax.Array,
    reference_rejected_PV: jax.Array,
    *,
    beta: float = 0.1,
    label_smoothing: float = 0.0,
    form: Literal["sigmoid", "ipo"] = "sigmoid",
    rejects: Rejects = "mean",
) -> jax.Array:
    """DPO (or IPO) over summed log-probabilities of the model and of a frozen reference."""

    def loss(logits: jax.Array) -> jax.Array:
        return (logits - 0.5 / beta) ** 2 if form == "ipo" else _smoothed(beta * logits, label_smoothing)

    ratio_P, ratio_PV = chosen_P - reference_chosen_P, rejected_PV - reference_rejected_PV
    return _compared(loss, ratio_P, ratio_PV, present_PV, rejects)


def wins(chosen_P: jax.Array, rejected_PV: jax.Array, present_PV: jax.Array) -> jax.Array:
    """1.0 where the chosen response beats the mean of the rejected ones; a tie is no win."""
    return (chosen_P > weighted_mean(rejected_PV, present_PV)).astype(jnp.float32)


def _compared(loss, chosen_P: jax.Array, rejected_PV: jax.Array, present_PV: jax.Array, rejects: Rejects) -> jax.Array:
    """`loss` of chosen - rejected, `[P]`: of the mean of the rejected ones, or the mean of the losses."""
    if rejects == "mean":
        return loss((chosen_P - weighted_mean(rejected_PV, present_PV))[:, None])[:, 0]
    return weighted_mean(loss(chosen_P[:, None] - rejected_PV), present_PV)


def _smoothed(logits: jax.Array, smoothing: float) -> jax.Array:
    return -(1.0 - smoothing) * log_sigmoid(logits) - smoothing * log_sigmoid(-logits)
