"""Decode attention on TPU: the operands of the kernel from a view of the cache."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from pallas_kernels.decode_attention.plan import group_runs, token_limits
from pallas_kernels.decode_attention.view import CacheView, Pages, fold_query_heads, hole_mask, unfold_query_heads
from pallas_kernels.schedule import AttentionSpec
from pallas_kernels.tpu.decode import DecodeOperands, byte_order, decode
from pallas_kernels.tpu.limits import LANES

SUBLANES = 8


def why_not(q: jax.Array, view: CacheView) -> str | None:
    """What keeps a case from running here; None if nothing does."""
    pages = view.pages
    group, channels = pages.group, q.shape[3] // pages.v_scale.shape[-1]
    if jax.default_backend() == "tpu" and group % LANES:
        return f"The TPU kernel needs groups of a multiple of {LANES} tokens; got {group}. Use impl='xla'."
    if channels != min(group, q.shape[3]):
        return (
            f"The TPU kernel needs values quantised over {min(group, q.shape[3])} channels; got {channels}. "
            "Use impl='xla'."
        )
    return None


def decode_attention_tpu(
    q_BTNH: jax.Array, view: CacheView, position_B: jax.Array, sparse_BK: jax.Array, spec: AttentionSpec
) -> jax.Array:
    """See `decode_attention`."""
    refusal = why_not(q_BTNH, view)
    if refusal is not None:
        raise NotImplementedError(refusal)
    B, K, J = view.table_BKJ.shape
    T, H = q_BTNH.shape[1], q_BTNH.shape[3]
    pages = view.pages
    q_PRH = fold_query_heads(q_BTNH, K).reshape(B * K, -1, H)
    R = q_PRH.shape[1]
    limits_PT3 = token_limits(sparse_BK, position_B, T, spec).reshape(B * K, T, 3)
    limits_PR3 = jnp.tile(limits_PT3, (1, R // T, 1))
    spare = ((0, 0), (0, -R % SUBLANES), (0, 0))
    table_PJ = view.table_BKJ.reshape(B * K, J)
    operands = DecodeOperands(
        jnp.pad(q_PRH, spare),
        jnp.pad(limits_PR3, spare),
        view.exact_k_BKEH.reshape(B * K, -1, H),
        view.exact_v_BKEH.reshape(B * K, -1, H),
        view.exact_pos_BKE.reshape(B * K, 1, -1),
        jnp.stack([table_PJ, neighbours(table_PJ)], 1),
        pages.k_codes,
        pages.v_codes,
        token_marks(pages, table_PJ),
    )
    runs_P4 = group_runs(sparse_BK, position_B, view.quantized_B, pages.group, spec).reshape(B * K, 4)
    out = decode(operands, runs_P4, spec, group=pages.group, bits=pages.bits, norm=pages.k_norm is not None)
    return unfold_query_heads(out[:, :R].reshape(B, K, R, H), T)


def neighbours(table_PJ: jax.Array) -> jax.Array:
    """How many groups from each one on lie on consecutive pages."""
    J = table_PJ.shape[1]
    breaks = jnp.pad(table_PJ[:, 1:] != table_PJ[:, :-1] + 1, ((0, 0), (0, 1)), constant_values=True)
    stop = lax.cummin(jnp.where(breaks, jnp.arange(J) + 1, J), axis=1, reverse=True)
    return stop - jnp.arange(J)[None]


def token_marks(pages: Pages, table_PJ: jax.Array) -> jax.Array:
    """The metadata of the groups of every head in whole registers, as `DecodeOperands` describes it.

    The pool keeps a page's metadata in rows that are no whole registers, so it is gathered by XLA: 4 KiB a group, next
    to 8 KiB of codes at 2 bits and head dim 128.
    """
    group, H = pages.group, pages.k_codes.shape[-1]
    tokens = byte_order(np.arange(group), pages.k_codes.shape[1], pages.bits)
    lanes = -(-max(group, H) // LANES) * LANES

    def rows(x: jax.Array) -> jax.Array:
        return jnp.pad(x.astype(jnp.float32), ((0, 0), (0, 0), (0, 0), (0, lanes - x.shape[3])))

    norm = 1.0 if pages.k_norm is None else pages.k_norm[table_PJ].astype(jnp.float32)
    marks = jnp.where(hole_mask(pages.holes[table_PJ]), -1.0, norm)
    marks = [
        *(rows(x[table_PJ][:, :, None]) for x in (pages.k_scale, pages.k_zero)),
        rows(marks[:, :, None, tokens]),
        *(rows(x[table_PJ].swapaxes(2, 3)[..., tokens]) for x in (pages.v_scale, pages.v_zero)),
    ]
    count = sum(x.shape[2] for x in marks)
    return jnp.pad(jnp.concatenate(marks, 2), ((0, 0), (0, 0), (0, -count % SUBLANES), (0, 0)))
