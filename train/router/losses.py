"""Losses of router training: cross-entropy of packed rows, the constraint on sparsity, the penalty on router logits."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from elastic_jax.model import ElasticForCausalLM, Hidden
from train.data.packing import Rows
from train.token_losses import token_nll

Multipliers = dict[str, jax.Array]
"""Lagrange multipliers by name, each float32 `[tasks]`."""


def packed_nll(
    model: ElasticForCausalLM, rows: Rows, *, max_segments: int, gates: Any = None, remat: Any = False
) -> tuple[Hidden, jax.Array]:
    """The model's hidden states and routing on packed rows, and the NLL of each learnt token, float32 `[B, T]`.

    Args:
        gates: see `ElasticForCausalLM.hidden`; None for the routers' own decisions.
        remat: see there, too.
    """
    out = model.hidden(
        rows.input_ids,
        segment_ids=rows.segment_ids,
        prompt_lengths=rows.prompt_lengths,
        num_segments=max_segments,
        gates=gates,
        remat=remat,
    )
    return out, token_nll(out.hidden_BTD, model.head_kernel(), rows.labels, rows.weights > 0)


def full_states(model: ElasticForCausalLM, rows: Rows, *, max_segments: int) -> jax.Array:
    """Normed hidden states `[B, T, D]` of packed rows with every head full, for distillation."""
    out = model.hidden(rows.input_ids, segment_ids=rows.segment_ids, num_segments=max_segments, gates="full")
    return jax.lax.stop_gradient(out.hidden_BTD)


def sparse_share(z_LBMK: jax.Array) -> jax.Array:
    """MSR of each sample, `[B, M]`: one minus the mean gate over layers and KV heads."""
    return 1.0 - z_LBMK.mean(axis=(0, 3))


def task_means(values_BM: jax.Array, task_ids_BM: jax.Array, tasks: int) -> tuple[jax.Array, jax.Array]:
    """Mean of the samples of each task and how many there are, both float32 `[tasks]`; id -1 is no sample."""
    member = jax.nn.one_hot(task_ids_BM, tasks)
    count = member.sum((0, 1))
    return jnp.einsum("bm,bmk->k", values_BM, member) / jnp.maximum(count, 1.0), count


def logit_penalty(logits_LBMKc: jax.Array, task_ids_BM: jax.Array) -> jax.Array:
    """Mean square of full logit - sparse logit over layers, heads and the samples present."""
    present_BM = (task_ids_BM >= 0).astype(jnp.float32)
    squares_BM = ((logits_LBMKc[..., 1] - logits_LBMKc[..., 0]) ** 2).mean(axis=(0, 3))
    return (squares_BM * present_BM).sum() / jnp.maximum(present_BM.sum(), 1.0)


def official_sparsity_loss(
    msr_BM: jax.Array, task_ids_BM: jax.Array, target: jax.Array, multipliers: Multipliers
) -> jax.Array:
    """The released code's constraint: lambda1 |d| + lambda2 d^2 with d = MSR - target, averaged within each task, then
    over the tasks present. Minimised by the routers, maximised by the multipliers `linear` and `quadratic`, which
    therefore only grow."""
    task_BM = jnp.maximum(task_ids_BM, 0)
    d_BM = msr_BM - target[task_BM]
    loss_BM = multipliers["linear"][task_BM] * jnp.abs(d_BM) + multipliers["quadratic"][task_BM] * d_BM**2
    means, counts = task_means(loss_BM, task_ids_BM, target.shape[0])
    present = counts > 0
    return jnp.where(present, means, 0.0).sum() / jnp.maximum(present.sum(dtype=jnp.float32), 1)


def target_violation(msr: jax.Array, low: jax.Array, high: jax.Array) -> jax.Array:
    """How far each MSR lies outside low - high."""
    return jnp.maximum(jnp.maximum(low - msr, msr - high), 0.0)


def interval_sparsity_loss(
    msr_BM: jax.Array,
    task_ids_BM: jax.Array,
    low: jax.Array,
    high: jax.Array,
    multipliers: Multipliers,
    *,
    penalty: float,
) -> jax.Array:
    """Augmented Lagrangian of low <= MSR <= high, with both multipliers >= 0.

    Within each task the mean of `below` (low - MSR) + `above` (MSR - high) + penalty/2 * violation^2, then the mean
    over the tasks present. The differences are signed, so a multiplier falls while its bound holds, and inside the
    interval nothing pulls once both have reached zero.
    """
    task_BM = jnp.maximum(task_ids_BM, 0)
    below_BM, above_BM = low[task_BM] - msr_BM, msr_BM - high[task_BM]
    violation_BM = target_violation(msr_BM, low[task_BM], high[task_BM])
    loss_BM = (
        multipliers["below"][task_BM] * below_BM
        + multipliers["above"][task_BM] * above_BM
        + 0.5 * penalty * violation_BM**2
    )
    means, counts = task_means(loss_BM, task_ids_BM, low.shape[0])
    present = counts > 0
    return jnp.where(present, means, 0.0).sum() / jnp.maximum(present.sum(dtype=jnp.float32), 1)
