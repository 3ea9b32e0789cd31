"""Attention ops under the mesh that is set: the caller sees whole arrays, each device works on its part.

Rows are divided over `data` and `fsdp`, heads over `tensor`, tokens over `context`; without a mesh these are the ops of
`pallas_kernels`, nothing more. On the context axis there are two exchanges. Heads that see everything get all keys and
values of the row, and queries change places so that all shards have equal work. Heads that see sinks and a local
window get a halo only. Both hand the op rows of keys that end with its queries, with segment ids that say what each
token belongs to, so that the op itself knows nothing of shards.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

import pallas_kernels
from elastic_jax.sharding.division import (
    CONTEXT,
    Division,
    Halo,
    context_size,
    find_division,
    find_halo,
    halo_is_cheaper,
)
from elastic_jax.sharding.exchange import (
    border_sinks,
    from_balanced,
    ids_up_to,
    keys_up_to,
    preceding,
    to_balanced,
)
from pallas_kernels.checks import attention_spec, check_block_masks, check_choice, check_qkv, check_rows
from pallas_kernels.schedule import AttentionSpec

SPEC = ("sink_blocks", "local_blocks", "block_size", "window", "scale")
ARRAYS = ("lengths", "segment_ids", "block_mask", "full_block_mask")
DEFAULTS: dict[str, Any] = dict.fromkeys((*SPEC, *ARRAYS)) | {"sink_blocks": 1, "local_blocks": 16, "block_size": 128}
"""Options of the ops that matter here."""

type Op = Callable[..., Any]
"""An attention op of q, k, v and a choice for each head; its results have tokens on axis 1 and heads on axis 2."""


def hybrid_attention(q_BTNH: jax.Array, k_BSKH: jax.Array, v_BSKH: jax.Array, mode: jax.Array, **options: Any) -> Any:
    """`pallas_kernels.hybrid_attention` under the mesh that is set; arguments, results and errors are the same.

    Over several shards of a row, KV heads go one after the other: one that is full in any row gets all keys, any other
    its halo only.

    Raises:
        ValueError: with a row divided over devices, block masks or fewer queries than keys.
    """
    return _attend(pallas_kernels.hybrid_attention, q_BTNH, k_BSKH, v_BSKH, mode, options, streams=True)


def routed_attention(
    q_BTNH: jax.Array, k_BSKH: jax.Array, v_BSKH: jax.Array, z: jax.Array, **options: Any
) -> jax.Array:
    """`pallas_kernels.routed_attention` under the mesh that is set; errors as for `hybrid_attention`.

    Both branches run, so every head needs all keys (unless a token window limits the full branch as well).
    """
    return _attend(pallas_kernels.routed_attention, q_BTNH, k_BSKH, v_BSKH, z, options, streams=False)


def dual_attention(
    q_BTNH: jax.Array, k_BSKH: jax.Array, v_BSKH: jax.Array, **options: Any
) -> tuple[jax.Array, jax.Array]:
    """`pallas_kernels.dual_attention` under the mesh that is set; see `routed_attention`."""

    def op(q: jax.Array, k: jax.Array, v: jax.Array, _: jax.Array, **options: Any) -> Any:
        return pallas_kernels.dual_attention(q, k, v, **options)

    nothing_BK = jnp.zeros((k_BSKH.shape[0], k_BSKH.shape[2]), jnp.int32)
    return _attend(op, q_BTNH, k_BSKH, v_BSKH, nothing_BK, options, streams=False)


def select_blocks(
    q_BTNH: jax.Array,
    k_BSKH: jax.Array,
    *,
    heads: jax.Array | None = None,
    segment_ids: jax.Array | None = None,
    lengths: jax.Array | None = None,
    **options: Any,
) -> jax.Array:
    """`pallas_kernels.select_blocks` under the mesh that is set; arguments, results and errors are the same.

    Raises:
        ValueError: a row divided over devices, as blocks are chosen from whole rows.
    """
    division = find_division(q_BTNH.shape[0], q_BTNH.shape[2], k_BSKH.shape[2])
    if division is None:
        return pallas_kernels.select_blocks(
            q_BTNH, k_BSKH, heads=heads, segment_ids=segment_ids, lengths=lengths, **options
        )
    if division.tokens:
        raise ValueError("blocks cannot be chosen from rows divided over devices. Use a mesh with context 1.")
    k_BSKH = jnp.repeat(k_BSKH, division.repeats, axis=2)
    given = {"heads": heads, "segment_ids": segment_ids, "lengths": lengths}
    if heads is not None:
        given["heads"] = jnp.repeat(heads, division.repeats, axis=1)
    arrays = {name: array for name, array in given.items() if array is not None}
    places = {"heads": division.by_head, "segment_ids": division.by_row, "lengths": division.by_row}
    body = jax.shard_map(
        lambda q, k, arrays: pallas_kernels.select_blocks(q, k, **arrays, **options),
        in_specs=(*(division.by_token,) * 2, {name: places[name] for name in arrays}),
        out_specs=division.by_head,
        check_vma=False,
    )
    return body(q_BTNH, k_BSKH, arrays)


def _attend(
    op: Op, q: jax.Array, k: jax.Array, v: jax.Array, choice: jax.Array, options: dict[str, Any], *, streams: bool
) -> Any:
    """`streams`: whether a head computes its chosen branch only."""
    division = find_division(q.shape[0], q.shape[2], k.shape[2])
    if division is None:
        return op(q, k, v, choice, **options)
    options = DEFAULTS | options
    spec = attention_spec(q.shape[3], **{name: options[name] for name in SPEC})
    packed = options["segment_ids"] is not None
    check_qkv(q, k, v)
    check_rows(k.shape[0], k.shape[1], spec.block_size, options["segment_ids"], options["lengths"])
    check_block_masks(q, k, spec.block_size, options["block_mask"], options["full_block_mask"])
    check_choice("the choice of each head", choice, k.shape[0], k.shape[2], packed=packed)
    k, v = (jnp.repeat(x, division.repeats, axis=2) for x in (k, v))
    choice = jnp.repeat(choice, division.repeats, axis=-1)
    if division.tokens:
        return _over_tokens(op, q, k, v, choice, options, spec, division, streams)
    return _over_rows_and_heads(op, q, k, v, choice, options, division)


def _over_rows_and_heads(
    op: Op, q: jax.Array, k: jax.Array, v: jax.Array, choice: jax.Array, options: dict[str, Any], division: Division
) -> Any:
    places = dict(zip(ARRAYS, (division.by_row,) * 2 + (division.by_head,) * 2, strict=True))
    arrays = {name: options[name] for name in ARRAYS if options[name] is not None}
    settings = {name: x for name, x in options.items() if name not in ARRAYS}
    chosen = division.by_head if choice.ndim == 2 else division.by_segment
    body = jax.shard_map(
        lambda q, k, v, choice, arrays: op(q, k, v, choice, **arrays, **settings),
        in_specs=(*(division.by_token,) * 3, chosen, {name: places[name] for name in arrays}),
        out_specs=division.by_token,
        check_vma=False,  # kernels do not say over which axes their results vary
    )
    return body(q, k, v, choice, arrays)


class Rows(NamedTuple):
    """Operands of one shard; ids of the whole row."""

    q_BTNH: jax.Array
    k_BTKH: jax.Array
    v_BTKH: jax.Array
    choice_BMK: jax.Array
    ids_BT: jax.Array


def _over_tokens(
    op: Op,
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    choice: jax.Array,
    options: dict[str, Any],
    spec: AttentionSpec,
    division: Division,
    streams: bool,
) -> Any:
    lengths, ids, *masks = (options[name] for name in ARRAYS)
    if any(mask is not None for mask in masks):
        raise ValueError("block masks cannot go with rows divided over devices. Use a mesh with context 1.")
    B, T, _, H = q.shape
    if k.shape[1] != T:
        raise ValueError(
            f"{T} queries for {k.shape[1]} keys; rows divided over devices need as many queries as keys. "
            "Use a mesh with context 1."
        )
    shards = context_size()
    ids = jnp.ones((B, T), jnp.int32) if ids is None else ids
    if lengths is not None:
        ids = jnp.where(jnp.arange(T) < lengths[:, None], ids, 0)
    padding = -T % (2 * shards * spec.block_size)
    q, k, v, ids = (jnp.pad(x, ((0, 0), (0, padding), *((0, 0),) * (x.ndim - 2))) for x in (q, k, v, ids))
    choice = choice[:, None] if choice.ndim == 2 else choice

    halo = find_halo(T + padding, shards, spec)
    groups = q.shape[2] // k.shape[2]
    near = halo_is_cheaper(T + padding, shards, groups, H, q.dtype.itemsize, spec, halo)
    attend = partial(op, **{name: x for name, x in options.items() if name not in ARRAYS})
    everything, nearby = partial(with_all_keys, attend), partial(with_halo, attend, halo, spec)
    body = nearby if near and spec.window is not None else everything
    if near and streams and spec.window is None:
        body = partial(head_by_head, everything, nearby, division.mesh_axes)
    out = jax.shard_map(
        lambda *operands: body(Rows(*operands)),
        in_specs=(*(division.by_token,) * 3, division.by_segment, division.by_row),
        out_specs=division.by_token,
        check_vma=False,
    )(q, k, v, choice, ids)
    return jax.tree.map(lambda x: x[:, :T], out)


def with_all_keys(attend: Op, rows: Rows) -> Any:
    """All keys and values on every shard; an early and a late chunk of the queries each.

    The early chunks lie in the first half of the row, so that half of the keys is enough for them.
    """
    shards, shard = lax.axis_size(CONTEXT), lax.axis_index(CONTEXT)
    queries = to_balanced(rows.q_BTNH, CONTEXT)
    kv = lax.all_gather(jnp.concatenate([rows.k_BTKH, rows.v_BTKH], -1), CONTEXT, axis=1, tiled=True)
    outs = []
    for q, chunk, chunks in ((queries[0], shard, shards), (queries[1], 2 * shards - 1 - shard, 2 * shards)):
        at = {"chunk": chunk, "chunks": chunks, "size": q.shape[1]}
        k, v = jnp.split(keys_up_to(kv, **at), 2, axis=-1)
        outs.append(attend(q, k, v, rows.choice_BMK, segment_ids=ids_up_to(rows.ids_BT, **at)))
    return jax.tree.map(lambda early, late: from_balanced(early, late, CONTEXT), *outs)


def with_halo(attend: Op, halo: Halo, spec: AttentionSpec, rows: Rows) -> Any:
    """Own keys, those right before, and the sinks of the segment that runs across the border: exact where nothing else
    is seen. Leaving out what lies between sinks and halo moves no visible key across the edge of a rule, since both
    sinks and local blocks are counted from their own end."""
    block, own = spec.block_size, rows.q_BTNH.shape[1]
    kv = jnp.concatenate([rows.k_BTKH, rows.v_BTKH], -1)
    before = halo.before * block
    ids = jnp.pad(rows.ids_BT, ((0, 0), (before, 0)))
    ids = lax.dynamic_slice_in_dim(ids, lax.axis_index(CONTEXT) * own, before + own, axis=1)
    parts = [preceding(kv, before, CONTEXT), kv] if before else [kv]
    if halo.sinks:
        sinks, sink_ids = border_sinks(kv, rows.ids_BT, halo.sinks, halo.before, block, CONTEXT)
        parts, ids = [sinks, *parts], jnp.concatenate([sink_ids, ids], axis=1)
    k, v = jnp.split(jnp.concatenate(parts, axis=1), 2, axis=-1)
    return attend(rows.q_BTNH, k, v, rows.choice_BMK, segment_ids=ids)


def head_by_head(everything: Op, nearby: Op, mesh_axes: tuple[str, ...], rows: Rows) -> Any:
    """KV heads one after the other: all keys only for those that are full in some row of some device.

    All devices of the mesh decide alike, so that no collective waits for a device that took the other way.
    """
    B, own, N, H = rows.q_BTNH.shape
    K, M = rows.k_BTKH.shape[2], rows.choice_BMK.shape[1]
    present_BM = (jnp.minimum(rows.ids_BT, M)[:, None, :] == jnp.arange(1, M + 1)[:, None]).any(-1)
    full_K = ((rows.choice_BMK == 0) & present_BM[..., None]).any((0, 1))
    full_K = lax.psum(full_K.astype(jnp.int32), mesh_axes) > 0

    def one_head(_: None, head: tuple[jax.Array, ...]) -> tuple[None, Any]:
        full, q, k, v, choice = head
        part = Rows(q, k[:, :, None], v[:, :, None], choice[..., None], rows.ids_BT)
        return None, lax.cond(full, everything, nearby, part)

    q_KBTGH = jnp.moveaxis(rows.q_BTNH.reshape(B, own, K, N // K, H), 2, 0)
    of_heads = (jnp.moveaxis(x, 2, 0) for x in (rows.k_BTKH, rows.v_BTKH, rows.choice_BMK))
    _, out = lax.scan(one_head, None, (full_K, q_KBTGH, *of_heads))
    return jax.tree.map(lambda x: jnp.moveaxis(x, 0, 2).reshape(B, own, N, *x.shape[4:]), out)
