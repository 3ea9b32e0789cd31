"""Dual and routed attention on TPU: both outputs from one sweep over the keys.

Sinks, local blocks and the diagonal come first; the running softmax then is the sparse output, which the kernel keeps,
and going on over the middle makes it the full one. With block masks the sparse branch may see what the
full one does not, so each has a launch of its own. The backward pass is that of `hybrid_attention`.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from pallas_kernels.blocks import RowLayout, by_query_block, clear_padding
from pallas_kernels.call import AttentionCall
from pallas_kernels.schedule import AttentionSpec
from pallas_kernels.tpu.backward import attention_backward
from pallas_kernels.tpu.forward import attention_forward
from pallas_kernels.tpu.operands import Operands, launch_operands, unfold_output
from pallas_kernels.tpu.plan import LaunchSizes, Tables, list_blocks, make_tables


class Lists(NamedTuple):
    """Listed blocks of each branch and of the chosen one, see `list_blocks`; None where the schedule holds."""

    full: jax.Array | None
    sparse: jax.Array | None
    chosen: jax.Array | None


class Branch(NamedTuple):
    """Output `[P, Q, R, H]` and log-sum-exp `[P, Q, 1, R]`."""

    out: jax.Array
    lse: jax.Array


def make_lists(call: AttentionCall, sparse: jax.Array, rows: RowLayout, sizes: LaunchSizes) -> Lists | None:
    """Lists for the modes `sparse`, bool `[B, K]` or `[B, M, K]`; None without masks."""
    if not call.has_masks:
        return None
    make = partial(list_blocks, rows=rows, sizes=sizes, spec=call.spec)
    return Lists(
        make(jnp.zeros_like(sparse), sparse_mask=None, full_mask=call.full_block_mask),
        make(jnp.ones_like(sparse), sparse_mask=call.block_mask, full_mask=None),
        make(sparse, sparse_mask=call.block_mask, full_mask=call.full_block_mask),
    )


def every_head(sparse: bool, tables: Tables) -> Tables:
    """The same tables with all heads in one mode."""
    return tables._replace(sparse=jnp.full_like(tables.sparse, sparse))


def separate_branches(
    operands: Operands, tables: Tables, lists: Lists, sizes: LaunchSizes, spec: AttentionSpec
) -> tuple[Branch, Branch]:
    """(full, sparse) in float32, a launch each."""
    run = partial(attention_forward, *operands)
    options = {"outputs": "one", "sizes": sizes, "spec": spec, "out_dtype": jnp.float32}
    full = run(every_head(False, tables), lists.full, **options)
    return Branch(*full), Branch(*run(every_head(True, tables), lists.sparse, **options))


@partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def both(
    operands: Operands, tables: Tables, lists: Lists | None, sizes: LaunchSizes, spec: AttentionSpec
) -> tuple[jax.Array, jax.Array]:
    """(full, sparse) outputs `[P, Q, R, H]`."""
    return _both_forward(operands, tables, lists, sizes, spec)[0]


def _both_forward(operands: Operands, tables: Tables, lists: Lists | None, sizes: LaunchSizes, spec: AttentionSpec):
    if lists is None:
        outs = attention_forward(*operands, tables, None, "both", sizes, spec)
        full, sparse = Branch(*outs[:2]), Branch(*outs[2:])
    else:
        branches = separate_branches(operands, tables, lists, sizes, spec)
        full, sparse = (Branch(x.out.astype(operands.q_PQRH.dtype), x.lse) for x in branches)
    return (full.out, sparse.out), (operands, tables, lists, full, sparse)


def _both_backward(
    sizes: LaunchSizes, spec: AttentionSpec, saved: tuple[Any, ...], d_outs: tuple[jax.Array, jax.Array]
):
    operands, tables, lists, full, sparse = saved
    full_list, sparse_list, _ = lists or (None, None, None)
    gradients = partial(attention_backward, operands, sizes=sizes, spec=spec)
    d_full = gradients(full.out, full.lse, d_outs[0], every_head(False, tables), full_list)
    d_sparse = gradients(sparse.out, sparse.lse, d_outs[1], every_head(True, tables), sparse_list)
    return jax.tree.map(jnp.add, d_full, d_sparse), None, None


both.defvjp(_both_forward, _both_backward)


@partial(jax.custom_vjp, nondiff_argnums=(5, 6))
def routed(
    operands: Operands,
    z_PQ: jax.Array,
    sparse_PQ: jax.Array,
    tables: Tables,
    lists: Lists | None,
    sizes: LaunchSizes,
    spec: AttentionSpec,
) -> jax.Array:
    """The output of the branch that each head is in; its gradient in z is <dO, full - sparse>."""
    chosen = None if lists is None else lists.chosen
    return attention_forward(*operands, tables, chosen, "out", sizes, spec)[0]


def _routed_forward(
    operands: Operands,
    z_PQ: jax.Array,
    sparse_PQ: jax.Array,
    tables: Tables,
    lists: Lists | None,
    sizes: LaunchSizes,
    spec: AttentionSpec,
):
    if lists is None:
        chosen, lse, difference = attention_forward(*operands, tables, None, "chosen", sizes, spec)
        return chosen, (operands, z_PQ, tables, lists, Branch(chosen, lse), difference)
    full, sparse = separate_branches(operands, tables, lists, sizes, spec)
    is_sparse = jnp.pad(sparse_PQ, ((0, 0), (0, sizes.query_blocks - sparse_PQ.shape[1])))[:, :, None, None]
    branch = jax.tree.map(partial(jnp.where, is_sparse), sparse, full)
    dtype = operands.q_PQRH.dtype
    chosen = Branch(branch.out.astype(dtype), branch.lse)
    return chosen.out, (operands, z_PQ, tables, lists, chosen, (full.out - sparse.out).astype(dtype))


def _routed_backward(sizes: LaunchSizes, spec: AttentionSpec, saved, d_out: jax.Array):
    operands, z_PQ, tables, lists, chosen, difference = saved
    dz_PQ = jnp.einsum("pqrh,pqrh->pq", d_out, difference, preferred_element_type=jnp.float32)
    blocks = None if lists is None else lists.chosen
    grads = attention_backward(operands, chosen.out, chosen.lse, d_out, tables, blocks, sizes, spec)
    return grads, dz_PQ[:, : z_PQ.shape[1]].astype(z_PQ.dtype), None, None, None


routed.defvjp(_routed_forward, _routed_backward)


def dual_attention_tpu(call: AttentionCall) -> tuple[jax.Array, jax.Array]:
    """See `dual_attention`."""
    any_mode = call.every_head(False)
    operands, rows, sizes = launch_operands(call, any_mode)
    lists = make_lists(call, any_mode, rows, sizes)
    outs = both(operands, make_tables(any_mode, rows, sizes), lists, sizes, call.spec)
    full, sparse = (clear_padding(unfold_output(out, sizes), rows.valid_BS) for out in outs)
    return full, sparse


def routed_attention_tpu(call: AttentionCall, z: jax.Array, sparse: jax.Array) -> jax.Array:
    """See `routed_attention`."""
    operands, rows, sizes = launch_operands(call, sparse)
    z_PQ = by_query_block(z, rows, sizes.geometry).reshape(sizes.heads, -1)
    sparse_PQ = by_query_block(sparse, rows, sizes.geometry).reshape(sizes.heads, -1)
    tables, lists = make_tables(sparse, rows, sizes), make_lists(call, sparse, rows, sizes)
    out = routed(operands, z_PQ, sparse_PQ, tables, lists, sizes, call.spec)
    return clear_padding(unfold_output(out, sizes), rows.valid_BS)
