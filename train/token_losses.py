"""Cross-entropy of labels without a whole logit matrix: only the logits of one chunk of tokens exist at a time.

`token_nll` is for a frozen vocabulary matrix, `label_log_probs` for one that is trained, and `token_kl` compares two
models that share a frozen one. Letters: D hidden size, V vocabulary, C tokens of a chunk.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from elastic_jax.sharding.rules import token_spec

CHUNK = 512
"""Tokens whose logits exist at a time."""


@partial(jax.custom_vjp, nondiff_argnums=(4,))
def token_nll(
    hidden_BTD: jax.Array, head_DV: jax.Array, labels_BT: jax.Array, needed_BT: jax.Array, chunk: int = CHUNK
) -> jax.Array:
    """Negative log-likelihood of each label in nats, float32 `[B, T]`; 0 where it is not needed.

    Only `hidden_BTD` gets a gradient. With logits z = h W, the loss of a token with label y is

        nll = log(sum_v exp(z_v)) - z_y,    d nll / d h = W (softmax(z) - onehot(y)).

    The forward pass also computes this derivative from the logits of each chunk and keeps it (`[B, T, D]`, as large as
    `hidden_BTD`); the backward pass multiplies it by the incoming gradient of each token. Logits are therefore computed
    once and never kept. Chunks without a needed token are skipped.

    Args:
        hidden_BTD: normed hidden states.
        head_DV: the vocabulary matrix W; frozen.
        labels_BT: the token that follows each state.
        needed_BT: bool, where a loss is wanted.
        chunk: tokens whose logits exist at a time, on each device.
    """
    return _nll_and_slope(hidden_BTD, head_DV, labels_BT, needed_BT, chunk, with_slope=False)[0]


def _token_nll_forward(
    hidden_BTD: jax.Array, head_DV: jax.Array, labels_BT: jax.Array, needed_BT: jax.Array, chunk: int
) -> tuple[jax.Array, jax.Array | None]:
    return _nll_and_slope(hidden_BTD, head_DV, labels_BT, needed_BT, chunk, with_slope=True)


def _token_nll_backward(
    chunk: int, slope_BTD: jax.Array, cotangent_BT: jax.Array
) -> tuple[jax.Array, None, None, None]:
    return slope_BTD * cotangent_BT[..., None].astype(slope_BTD.dtype), None, None, None


token_nll.defvjp(_token_nll_forward, _token_nll_backward)


def label_log_probs(
    hidden: jax.Array, head_DV: jax.Array, labels: jax.Array, needed: jax.Array, *, chunk: int = CHUNK
) -> jax.Array:
    """Log-probability of each label in nats, float32 `[...]`; 0 where it is not needed.

    Unlike in `token_nll` the vocabulary matrix gets a gradient too. It depends on the incoming gradient of each token,
    so the backward pass computes the logits of each chunk again.

    Args:
        hidden: normed hidden states `[..., D]`.
        head_DV: vocabulary matrix.
        labels: the token that follows each state, `[...]`.
        needed: bool `[...]`, where a log-probability is wanted.
        chunk: tokens whose logits exist at a time.
    """

    @jax.checkpoint
    def log_prob(hidden_CD: jax.Array, labels_C: jax.Array, needed_C: jax.Array) -> jax.Array:
        logits_CV = jnp.dot(hidden_CD, head_DV, preferred_element_type=jnp.float32)
        label_C = jnp.take_along_axis(logits_CV, labels_C[:, None], axis=-1)[:, 0]
        return jnp.where(needed_C, label_C - jax.nn.logsumexp(logits_CV, axis=-1), 0.0)

    return _by_chunk(log_prob, hidden, labels, needed, chunk)


def token_kl(
    hidden_BTD: jax.Array, full_BTD: jax.Array, head_DV: jax.Array, needed_BT: jax.Array, *, chunk: int = CHUNK
) -> jax.Array:
    """KL divergence of each token's distribution from that of `full_BTD`, nats, float32 `[B, T]`; 0 where not needed.

    Only `hidden_BTD` gets a gradient; the backward pass computes the logits of each chunk again.

    Args:
        hidden_BTD: normed hidden states of the model that learns.
        full_BTD: hidden states of the model to match.
        head_DV: the vocabulary matrix of both.
        needed_BT: bool, where a divergence is wanted.
        chunk: tokens whose logits exist at a time.
    """

    @jax.checkpoint
    def divergence(both_CE: jax.Array, _: jax.Array, needed_C: jax.Array) -> jax.Array:
        have_CV, want_CV = (
            jax.nn.log_softmax(jnp.dot(x, head_DV, preferred_element_type=jnp.float32))
            for x in jnp.split(both_CE, 2, axis=-1)
        )
        return jnp.where(needed_C, (jnp.exp(want_CV) * (want_CV - have_CV)).sum(-1), 0.0)

    both_BTE = jnp.concatenate([hidden_BTD, jax.lax.stop_gradient(full_BTD)], axis=-1)
    return _by_chunk(divergence, both_BTE, needed_BT, needed_BT, chunk)


def _by_chunk(
    compute: Callable[[jax.Array, jax.Array, jax.Array], Any],
    hidden: jax.Array,
    labels: jax.Array,
    needed: jax.Array,
    chunk: int,
) -> Any:
    """Calls `compute(hidden_CD, labels_C, needed_C)` for one chunk of tokens at a time and joins the results.

    Tokens are those of all leading axes in order; the last chunk is padded with tokens that are not needed. `compute`
    returns arrays `[C, ...]`, or a tree of them, which are joined to `[*labels.shape, ...]`. A chunk without a needed
    token is not computed; its results are zeros.
    """
    count = labels.size
    chunk = min(chunk, count)

    def in_chunks(array: jax.Array) -> jax.Array:
        tail = array.shape[labels.ndim :]
        flat = jnp.pad(array.reshape(count, *tail), ((0, -count % chunk), *((0, 0),) * len(tail)))
        return flat.reshape(-1, chunk, *tail)

    def zeros(*xs: jax.Array) -> Any:
        return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(compute, *xs))

    def one(xs: tuple[jax.Array, jax.Array, jax.Array]) -> Any:
        return jax.lax.cond(xs[2].any(), compute, zeros, *xs)

    chunks = jax.lax.map(one, (in_chunks(hidden), in_chunks(labels), in_chunks(needed)))
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:])[:count].reshape(*labels.shape, *x.shape[2:]), chunks)


def _nll_and_slope(
    hidden_BTD: jax.Array,
    head_DV: jax.Array,
    labels_BT: jax.Array,
    needed_BT: jax.Array,
    chunk: int,
    *,
    with_slope: bool,
) -> tuple[jax.Array, jax.Array | None]:
    """NLL `[B, T]` and, if asked for, its derivative with respect to each hidden vector, `[B, T, D]`.

    Under a mesh each device takes its own tokens and, where `tensor` divides the vocabulary, its own part of that.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if math.prod(mesh.shape.values()) == 1 or mesh.manual_axes:
        return _on_one_device(hidden_BTD, head_DV, labels_BT, needed_BT, chunk=chunk, with_slope=with_slope)
    tensor = mesh.shape.get("tensor", 1)
    vocabulary_axis = "tensor" if tensor > 1 and head_DV.shape[1] % tensor == 0 else None
    tokens = token_spec(labels_BT.shape)
    return jax.shard_map(
        partial(_on_one_device, chunk=chunk, with_slope=with_slope, vocabulary_axis=vocabulary_axis),
        in_specs=(tokens, PartitionSpec(None, vocabulary_axis), tokens, tokens),
        out_specs=(tokens, tokens if with_slope else None),
        check_vma=False,
    )(hidden_BTD, head_DV, labels_BT, needed_BT)


def _on_one_device(
    hidden_BTD: jax.Array,
    head_DV: jax.Array,
    labels_BT: jax.Array,
    needed_BT: jax.Array,
    *,
    chunk: int,
    with_slope: bool,
    vocabulary_axis: str | None = None,
) -> tuple[jax.Array, jax.Array | None]:
    """`_nll_and_slope` of a device's tokens.

    Args:
        vocabulary_axis: mesh axis that divides the vocabulary, if one does; `head_DV` is then this device's part.
    """

    def compute(hidden_CD: jax.Array, labels_C: jax.Array, needed_C: jax.Array) -> tuple[jax.Array, jax.Array | None]:
        logits_CV = jnp.dot(hidden_CD, head_DV, preferred_element_type=jnp.float32)
        log_total_C, label_logit_C, column_C = _label_logits(logits_CV, labels_C, vocabulary_axis)
        nll_C = jnp.where(needed_C, log_total_C - label_logit_C, 0.0)
        if not with_slope:
            return nll_C, None
        # softmax(z) - onehot(y): a label in another device's part has a column past the end, where `add` does nothing
        error_CV = jnp.exp(logits_CV - log_total_C[:, None]).at[jnp.arange(len(labels_C)), column_C].add(-1.0)
        error_CV = jnp.where(needed_C[:, None], error_CV, 0.0).astype(head_DV.dtype)
        slope_CD = jnp.einsum("cv,dv->cd", error_CV, head_DV, preferred_element_type=jnp.float32)
        if vocabulary_axis is not None:
            slope_CD = jax.lax.psum(slope_CD, vocabulary_axis)
        return nll_C, slope_CD.astype(hidden_CD.dtype)

    return _by_chunk(compute, hidden_BTD, labels_BT, needed_BT, chunk)


def _label_logits(
    logits_CV: jax.Array, labels_C: jax.Array, vocabulary_axis: str | None
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(log of the sum of exponentials over the whole vocabulary, logit of the label, column of the label), each `[C]`.

    With a divided vocabulary the logits are one device's part. The column of a label that another device has is V, one
    past the end.
    """
    if vocabulary_axis is None:
        label_logit_C = jnp.take_along_axis(logits_CV, labels_C[:, None], axis=-1)[:, 0]
        return jax.nn.logsumexp(logits_CV, axis=-1), label_logit_C, labels_C
    columns = logits_CV.shape[1]
    column_C = labels_C - jax.lax.axis_index(vocabulary_axis) * columns
    here_C = (column_C >= 0) & (column_C < columns)
    logit_C = jnp.take_along_axis(logits_CV, jnp.clip(column_C, 0, columns - 1)[:, None], axis=-1)[:, 0]
    label_logit_C = jax.lax.psum(jnp.where(here_C, logit_C, 0.0), vocabulary_axis)
    # the largest logit of all devices is taken out first, so that no exponential overflows
    largest_C = jax.lax.pmax(logits_CV.max(-1), vocabulary_axis)
    total_C = jax.lax.psum(jnp.exp(logits_CV - largest_C[:, None]).sum(-1), vocabulary_axis)
    return largest_C + jnp.log(total_C), label_logit_C, jnp.where(here_C, column_C, columns)
