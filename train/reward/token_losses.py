"""Log-probabilities of labels without a whole logit matrix."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp


def label_log_probs(
    hidden: jax.Array, head_DV: jax.Array, labels: jax.Array, needed: jax.Array, *, chunk: int = 512
) -> jax.Array:
    """Log-probability of each label in nats, float32 `[...]`; 0 where not needed.

    Args:
        hidden: normed hidden states `[..., D]`.
        head_DV: vocabulary matrix; unlike in `train.losses.token_nll` it may learn.
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
