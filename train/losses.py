"""Losses of router training: cross-entropy without a whole logit matrix, and the constraint on sparsity."""

from __future__ import annotations

import math
from functools import partial

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from elastic_jax.sharding import token_spec

Multipliers = dict[str, jax.Array]
"""Lagrange multipliers by name, each float32 `[tasks]`."""


@partial(jax.custom_vjp, nondiff_argnums=(4,))
def token_nll(
    hidden_BTD: jax.Array, head_DV: jax.Array, labels_BT: jax.Array, needed_BT: jax.Array, chunk: int = 512
) -> jax.Array:
    """Negative log-likelihood of each label in nats, float32 `[B, T]`; 0 where not needed.

    Logits exist for `chunk` tokens at a time and chunks without a needed token are skipped. The vocabulary head is
    frozen: only `hidden_BTD` gets a gradient, and it is found in the forward pass, so nothing is computed twice.
    """
    return _chunked(hidden_BTD, head_DV, labels_BT, needed_BT, chunk, with_slope=False)[0]


def _forward(hidden, head, labels, needed, chunk):
    nll, slope = _chunked(hidden, head, labels, needed, chunk, with_slope=True)
    return nll, slope


def _backward(chunk, slope_BTD, cotangent_BT):
    return (slope_BTD * cotangent_BT[..., None].astype(slope_BTD.dtype)), None, None, None


token_nll.defvjp(_forward, _backward)


def _chunked(hidden_BTD, head_DV, labels_BT, needed_BT, chunk, *, with_slope):
    """NLL `[B, T]` and, if asked for, its slope with respect to each hidden vector `[B, T, D]`.

    Under a mesh each device takes its own tokens and, where `tensor` divides the vocabulary, its own part of that.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if math.prod(mesh.shape.values()) == 1 or mesh.manual_axes:
        return _chunked_here(hidden_BTD, head_DV, labels_BT, needed_BT, chunk=chunk, with_slope=with_slope)
    tensor = mesh.shape.get("tensor", 1)
    vocabulary = "tensor" if tensor > 1 and head_DV.shape[1] % tensor == 0 else None
    tokens = token_spec(labels_BT.shape)
    return jax.shard_map(
        partial(_chunked_here, chunk=chunk, with_slope=with_slope, vocabulary=vocabulary),
        in_specs=(tokens, PartitionSpec(None, vocabulary), tokens, tokens),
        out_specs=(tokens, tokens if with_slope else None),
        check_vma=False,
    )(hidden_BTD, head_DV, labels_BT, needed_BT)


def _chunked_here(hidden_BTD, head_DV, labels_BT, needed_BT, *, chunk, with_slope, vocabulary=None):
    """`_chunked` on one device; `vocabulary` is the mesh axis that divides the vocabulary, if one does."""
    B, T, D = hidden_BTD.shape
    chunk = min(chunk, B * T)
    padding = -(B * T) % chunk

    def in_chunks(array, *tail):
        flat = array.reshape(B * T, *tail)
        return jnp.pad(flat, ((0, padding), *((0, 0),) * len(tail))).reshape(-1, chunk, *tail)

    def compute(hidden_CD, labels_C, needed_C):
        logits_CV = jnp.dot(hidden_CD, head_DV, preferred_element_type=jnp.float32)
        log_total_C, label_logit_C, at_C = _label_logits(logits_CV, labels_C, vocabulary)
        nll_C = jnp.where(needed_C, log_total_C - label_logit_C, 0.0)
        if not with_slope:
            return nll_C, None
        excess_CV = jnp.exp(logits_CV - log_total_C[:, None]).at[jnp.arange(chunk), at_C].add(-1.0)
        excess_CV = jnp.where(needed_C[:, None], excess_CV, 0.0).astype(head_DV.dtype)
        slope_CD = jnp.einsum("cv,dv->cd", excess_CV, head_DV, preferred_element_type=jnp.float32)
        slope_CD = slope_CD if vocabulary is None else jax.lax.psum(slope_CD, vocabulary)
        return nll_C, slope_CD.astype(hidden_CD.dtype)

    def skip(hidden_CD, labels_C, needed_C):
        return jnp.zeros(chunk, jnp.float32), jnp.zeros_like(hidden_CD) if with_slope else None

    def step(_, xs):
        return None, jax.lax.cond(jnp.any(xs[2]), compute, skip, *xs)

    xs = (in_chunks(hidden_BTD, D), in_chunks(labels_BT), in_chunks(needed_BT))
    _, (nll, slope) = jax.lax.scan(step, None, xs)
    nll_BT = nll.reshape(-1)[: B * T].reshape(B, T)
    return nll_BT, slope.reshape(-1, D)[: B * T].reshape(B, T, D) if with_slope else None


def _label_logits(logits_CV, labels_C, vocabulary):
    """(log of the sum of all exponentials, logit of the label, column of the label) of each token.

    The column is past the end where another device has it, which drops what is scattered there.
    """
    if vocabulary is None:
        label_logit_C = jnp.take_along_axis(logits_CV, labels_C[:, None], axis=-1)[:, 0]
        return jax.nn.logsumexp(logits_CV, axis=-1), label_logit_C, labels_C
    columns = logits_CV.shape[1]
    own_C = labels_C - jax.lax.axis_index(vocabulary) * columns
    has_C = (own_C >= 0) & (own_C < columns)
    logit_C = jnp.take_along_axis(logits_CV, jnp.clip(own_C, 0, columns - 1)[:, None], axis=-1)[:, 0]
    top_C = jax.lax.pmax(logits_CV.max(-1), vocabulary)
    total_C = jax.lax.psum(jnp.exp(logits_CV - top_C[:, None]).sum(-1), vocabulary)
    label_logit_C = jax.lax.psum(jnp.where(has_C, logit_C, 0.0), vocabulary)
    return top_C + jnp.log(total_C), label_logit_C, jnp.where(has_C, own_C, columns)


def sparse_share(z_LBMK: jax.Array) -> jax.Array:
    """MSR of each sample, `[B, M]`: one minus the mean gate over layers and KV heads."""
    return 1.0 - z_LBMK.mean(axis=(0, 3))


def task_means(values_BM: jax.Array, task_ids_BM: jax.Array, tasks: int) -> tuple[jax.Array, jax.Array]:
    """Mean of the samples of each task and how many there are, both float32 `[tasks]`; id -1 is no sample."""
    member = (task_ids_BM[..., None] == jnp.arange(tasks)).astype(jnp.float32)
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
    return jnp.where(present, means, 0.0).sum() / jnp.maximum(present.sum(), 1)


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
    return jnp.where(present, means, 0.0).sum() / jnp.maximum(present.sum(), 1)
