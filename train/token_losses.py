"""Log-probabilities of labels without a whole logit matrix."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from elastic_jax.sharding.rules import token_spec


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


def label_log_probs(
    hidden: jax.Array, head_DV: jax.Array, labels: jax.Array, needed: jax.Array, *, chunk: int = 512
) -> jax.Array:
    """Log-probability of each label in nats, float32 `[...]`; 0 where not needed.

    Args:
        hidden: normed hidden states `[..., D]`.
        head_DV: vocabulary matrix; unlike in `train.token_losses.token_nll` it may learn.
        labels: the token that follows each state, `[...]`.
        needed: where a log-probability is wanted, `[...]`.
        chunk: tokens whose logits exist at a time. They are computed again in the backward pass; chunks without a
            needed token are skipped.
    """
    shape, D = labels.shape, hidden.shape[-1]
    count = labels.size
    chunk = min(chunk, count)
    padding = -count % chunk

    def in_chunks(array: jax.Array, *tail: int) -> jax.Array:
        flat = jnp.pad(array.reshape(count, *tail), ((0, padding), *((0, 0),) * len(tail)))
        return flat.reshape(-1, chunk, *tail)

    @jax.checkpoint
    def compute(hidden_CD: jax.Array, labels_C: jax.Array, needed_C: jax.Array) -> jax.Array:
        logits_CV = jnp.dot(hidden_CD, head_DV, preferred_element_type=jnp.float32)
        label_C = jnp.take_along_axis(logits_CV, labels_C[:, None], axis=-1)[:, 0]
        return jnp.where(needed_C, label_C - jax.nn.logsumexp(logits_CV, axis=-1), 0.0)

    def skip(hidden_CD: jax.Array, labels_C: jax.Array, needed_C: jax.Array) -> jax.Array:
        return jnp.zeros(chunk, jnp.float32)

    def one(xs: Any) -> jax.Array:
        return jax.lax.cond(xs[2].any(), compute, skip, *xs)

    chunks = (in_chunks(hidden, D), in_chunks(labels), in_chunks(needed))
    return jax.lax.map(one, chunks).reshape(-1)[:count].reshape(shape)
