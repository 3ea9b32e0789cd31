"""Dual and routed attention on TPU: both outputs from one sweep over the keys.

Sinks, local blocks and the diagonal come first; the running softmax then is the sparse output, which the kernel keeps,
and going on over the middle makes it the full one. The backward pass is that of `hybrid_attention`.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from pallas_kernels.layout import by_block, clear_padding
from pallas_kernels.schedule import AttentionSpec
from pallas_kernels.tpu.backward import attention_backward
from pallas_kernels.tpu.forward import attention_forward
from pallas_kernels.tpu.operands import Operands, launch_operands, unfold_output
from pallas_kernels.tpu.plan import Layout, Tables, make_tables


def every_head(sparse: bool, tables: Tables) -> Tables:
    """The same tables with all heads in one mode."""
    return tables._replace(sparse=jnp.full_like(tables.sparse, sparse))


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def both(operands: Operands, tables: Tables, layout: Layout, spec: AttentionSpec) -> tuple[jax.Array, jax.Array]:
    """(full, sparse) outputs `[P, Q, R, H]`."""
    return _both_forward(operands, tables, layout, spec)[0]


def _both_forward(operands: Operands, tables: Tables, layout: Layout, spec: AttentionSpec):
    full, full_lse, sparse, sparse_lse = attention_forward(*operands, tables, None, "both", layout, spec)
    return (full, sparse), (operands, tables, full, full_lse, sparse, sparse_lse)


def _both_backward(layout: Layout, spec: AttentionSpec, saved: tuple[Any, ...], d_outs: tuple[jax.Array, jax.Array]):
    operands, tables, full, full_lse, sparse, sparse_lse = saved
    d_full = attention_backward(operands, full, full_lse, d_outs[0], every_head(False, tables), None, layout, spec)
    d_sparse = attention_backward(operands, sparse, sparse_lse, d_outs[1], every_head(True, tables), None, layout, spec)
    return jax.tree.map(jnp.add, d_full, d_sparse), None


both.defvjp(_both_forward, _both_backward)


@partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def routed(operands: Operands, z_PQ: jax.Array, tables: Tables, layout: Layout, spec: AttentionSpec) -> jax.Array:
    """The output of the branch that each head is in; its gradient in z is <dO, full - sparse>."""
    return attention_forward(*operands, tables, None, "out", layout, spec)[0]


def _routed_forward(operands: Operands, z_PQ: jax.Array, tables: Tables, layout: Layout, spec: AttentionSpec):
    chosen, lse, difference = attention_forward(*operands, tables, None, "chosen", layout, spec)
    return chosen, (operands, z_PQ, tables, chosen, lse, difference)


def _routed_backward(layout: Layout, spec: AttentionSpec, saved, d_out: jax.Array):
    operands, z_PQ, tables, chosen, lse, difference = saved
    dz_PQ = jnp.einsum("pqrh,pqrh->pq", d_out, difference, preferred_element_type=jnp.float32)
    grads = attention_backward(operands, chosen, lse, d_out, tables, None, layout, spec)
    return grads, dz_PQ[:, : z_PQ.shape[1]].astype(z_PQ.dtype), None


routed.defvjp(_routed_forward, _routed_backward)


def dual_attention_tpu(
    q_BTNH: jax.Array,
    k_BSKH: jax.Array,
    v_BSKH: jax.Array,
    spec: AttentionSpec,
    *,
    segment_ids: jax.Array | None = None,
    lengths: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
    """See `dual_attention`."""
    modes = jnp.zeros((q_BTNH.shape[0], k_BSKH.shape[2]), jnp.bool_)
    operands, rows, layout = launch_operands(q_BTNH, k_BSKH, v_BSKH, modes, spec, lengths, segment_ids)
    outs = both(operands, make_tables(modes, rows, layout), layout, spec)
    full, sparse = (clear_padding(unfold_output(out, layout), rows.valid_BS) for out in outs)
    return full, sparse


def routed_attention_tpu(
    q_BTNH: jax.Array,
    k_BSKH: jax.Array,
    v_BSKH: jax.Array,
    z: jax.Array,
    spec: AttentionSpec,
    *,
    segment_ids: jax.Array | None = None,
    lengths: jax.Array | None = None,
) -> jax.Array:
    """See `routed_attention`."""
    operands, rows, layout = launch_operands(q_BTNH, k_BSKH, v_BSKH, z, spec, lengths, segment_ids)
    z_BKQ = by_block(z, rows)[:, :, layout.geometry.first_query_block :]
    tables = make_tables(z <= 0.5, rows, layout)
    out = routed(operands, z_BKQ.reshape(layout.heads, -1), tables, layout, spec)
    return clear_padding(unfold_output(out, layout), rows.valid_BS)
