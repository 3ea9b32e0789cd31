"""The compiled programs of an engine. Each takes the cache as a donated argument and gives it back grown."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
from flax import nnx

from elastic_jax.engine import rows
from elastic_jax.generation import Cache, read_tokens
from elastic_jax.sampling import RowSampling, next_tokens


@partial(jax.jit, static_argnums=0, donate_argnums=2)
def read(
    graph: Any, params: Any, state: Cache, tokens_BT: jax.Array, counts_B: jax.Array, sampling: RowSampling
) -> tuple[Cache, jax.Array, jax.Array]:
    """Reads up to T tokens of every row: the cache, logits float32 `[B, T, V]`, and what is drawn from each."""
    state, logits_BTV = read_tokens(nnx.merge(graph, params), state, tokens_BT, counts_B)
    return state, logits_BTV, next_tokens(logits_BTV, sampling)


@jax.jit
def first_tokens(logits_1V: jax.Array, sampling: RowSampling) -> jax.Array:
    """What is drawn after a prompt, int32 `[1, 1]`."""
    return next_tokens(logits_1V[:, None], sampling)


@partial(jax.jit, static_argnames="most")
def best_continuations(
    logits: jax.Array, rows_W: jax.Array, column: jax.Array, scores_W: jax.Array, *, most: int
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The `most` best next tokens of W beams, best first: total log-probability, beam, token.

    `logits` is `[1, V]` after a prompt or `[B, T, V]` of a step, of which each beam takes a row at `column`.
    """
    logits_BTV = logits[:, None] if logits.ndim == 2 else logits
    total_WV = scores_W[:, None] + jax.nn.log_softmax(logits_BTV[rows_W, column])
    scores, flat = jax.lax.top_k(total_WV.reshape(-1), most)
    return scores, flat // total_WV.shape[1], flat % total_WV.shape[1]


put_prompt_dense = jax.jit(rows.put_prompt_dense, donate_argnums=0)
put_prompt_quantized = jax.jit(rows.put_prompt_quantized, donate_argnums=0)
put_row = jax.jit(rows.put_row, donate_argnums=0)
take_row = jax.jit(rows.take_row)
flush_rows = jax.jit(rows.flush_rows, donate_argnums=0)


@partial(jax.jit, donate_argnums=0)
def copy_row(state: Cache, source: jax.Array, target: jax.Array) -> Cache:
    """Makes a row the twin of another."""
    return rows.put_row(state, target, rows.take_row(state, source))
