"""Attention ops under the mesh that is set: the caller sees whole arrays, each device works on its part.

Rows are divided over `data` and `fsdp`, heads over `tensor`, tokens over `context`. Over `context` there are two
exchanges. A head that sees everything needs all keys and values of the row, and queries change places so that all
shards have equal work. A head that sees sinks and a local window needs a halo only. Either way the op gets keys that
end with its queries, and segment ids that say what each token belongs to, so it needs to know nothing of shards.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
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
    mesh_divides,
)
from elastic_jax.sharding.exchange import (
    border_sinks,
    from_balanced,
    ids_up_to,
    keys_up_to,
    preceding,
    to_balanced,
)
from pallas_kernels.schedule import AttentionSpec

ARRAYS = ("lengths", "segment_ids", "block_mask", "full_block_mask")
"""Options of the ops that are arrays."""

type Op = Callable[..., Any]
"""An attention op of q, k, v and a choice for each head; its results have tokens on axis 1 and heads on axis 2."""


def on_mesh(op: Op) -> Op:
    """An attention op of `pallas_kernels` under the mesh that is set; without a mesh, the op itself.

    Arguments, results and errors are those of the op. Over several shards of a row, `hybrid_attention` goes through
    the KV heads one by one: a head that is full in any row gets all keys, any other its halo only. `dual_attention`
    and `routed_attention` run both branches, so every head gets all keys, unless a token window limits the full
    branch as well. With a row divided over devices, the op also raises ValueError for block masks, for fewer queries
    than keys, and where blocks are to be chosen.
    """
    if not mesh_divides():
        return op
    if op is pallas_kernels.select_blocks:
        return _select_blocks
    return _dual_attention if op is pallas_kernels.dual_attention else partial(_attend, op)


def _dual_attention(q: jax.Array, k: jax.Array, v: jax.Array, **options: Any) -> Any:
    def op(q: jax.Array, k: jax.Array, v: jax.Array, _: jax.Array, **options: Any) -> Any:
        return pallas_kernels.dual_attention(q, k, v, **options)

    nothing_BK = jnp.zeros((k.shape[0], k.shape[2]), jnp.int32)
    return _attend(op, q, k, v, nothing_BK, **options)


def _select_blocks(q_BTNH: jax.Array, k_BTKH: jax.Array, **options: Any) -> jax.Array:
    division = find_division(q_BTNH.shape[0], q_BTNH.shape[2], k_BTKH.shape[2])
    if division.tokens:
        raise ValueError("blocks cannot be chosen from rows divided over devices. Use a mesh with context 1.")
    places = {"heads": division.by_head, "segment_ids": division.by_row, "lengths": division.by_row}
    arrays, settings = _split(options, places)
    if "heads" in arrays:
        arrays["heads"] = jnp.repeat(arrays["heads"], division.repeats, axis=1)
    body = jax.shard_map(
        lambda q, k, arrays: pallas_kernels.select_blocks(q, k, **arrays, **settings),
        in_specs=(*(division.by_token,) * 2, {name: places[name] for name in arrays}),
        out_specs=division.by_head,
        check_vma=False,
    )
    return body(q_BTNH, jnp.repeat(k_BTKH, division.repeats, axis=2), arrays)


def _split(options: dict[str, Any], names: Iterable[str]) -> tuple[dict[str, jax.Array], dict[str, Any]]:
    """Options that are arrays, as far as they are given, and all others."""
    arrays = {name: options[name] for name in names if options.get(name) is not None}
    return arrays, {name: value for name, value in options.items() if name not in names}


class Operands(NamedTuple):
    """Arrays of one attention call, whole or one shard's part of them."""

    q_BTNH: jax.Array
    k_BTKH: jax.Array
    v_BTKH: jax.Array
    choice_BMK: jax.Array
    """Mode or gate of each head, for each segment."""
    ids_BT: jax.Array
    """Segment ids of the whole row, 0 for padding; a shard has them all."""


def _attend(op: Op, q: jax.Array, k: jax.Array, v: jax.Array, choice: jax.Array, **options: Any) -> Any:
    division = find_division(q.shape[0], q.shape[2], k.shape[2])
    call = pallas_kernels.check_attention(q, k, v, **{name: x for name, x in options.items() if name != "impl"})
    call.check_choice("the choice of each head", choice)
    k, v = (jnp.repeat(x, division.repeats, axis=2) for x in (k, v))
    choice = jnp.repeat(choice, division.repeats, axis=-1)
    arrays, settings = _split(options, ARRAYS)
    if not division.tokens:
        return _over_rows_and_heads(partial(op, **settings), q, k, v, choice, arrays, division)
    if "block_mask" in arrays or "full_block_mask" in arrays:
        raise ValueError("block masks cannot go with rows divided over devices. Use a mesh with context 1.")
    (B, T), queries = k.shape[:2], q.shape[1]
    if queries != T:
        raise ValueError(
            f"{queries} queries for {T} keys; rows divided over devices need as many queries as keys. "
            "Use a mesh with context 1."
        )
    ids = arrays.get("segment_ids", jnp.ones((B, T), jnp.int32))
    if "lengths" in arrays:
        ids = jnp.where(jnp.arange(T)[None] < arrays["lengths"][:, None], ids, 0)
    operands = Operands(q, k, v, choice[:, None] if choice.ndim == 2 else choice, ids)
    one_branch = op is pallas_kernels.hybrid_attention
    return _over_tokens(partial(op, **settings), operands, call.spec, division, one_branch)


def _over_rows_and_heads(
    attend: Op,
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    choice: jax.Array,
    arrays: dict[str, jax.Array],
    division: Division,
) -> Any:
    places = dict(zip(ARRAYS, (division.by_row,) * 2 + (division.by_head,) * 2, strict=True))
    chosen = division.by_head if choice.ndim == 2 else division.by_segment
    body = jax.shard_map(
        lambda q, k, v, choice, arrays: attend(q, k, v, choice, **arrays),
        in_specs=(*(division.by_token,) * 3, chosen, {name: places[name] for name in arrays}),
        out_specs=division.by_token,
        check_vma=False,  # kernels do not say over which axes their results vary
    )
    return body(q, k, v, choice, arrays)


def _over_tokens(attend: Op, whole: Operands, spec: AttentionSpec, division: Division, one_branch: bool) -> Any:
    """Attention with the tokens of each row divided over `context`.

    Args:
        one_branch: a head computes its chosen branch only, so heads may exchange different keys.
    """
    B, T, N, H = whole.q_BTNH.shape
    shards = context_size()
    # Every shard works on two chunks of the row, and every chunk has whole blocks.
    padded = T + -T % (2 * shards * spec.block_size)

    def pad(x: jax.Array) -> jax.Array:
        return jnp.pad(x, ((0, 0), (0, padded - T), *((0, 0),) * (x.ndim - 2)))

    q, k, v, choice, ids = whole
    halo = find_halo(padded, shards, spec)
    all_keys, own_halo = partial(with_all_keys, attend), partial(with_halo, attend, halo, spec)
    exchange = all_keys
    if halo_is_cheaper(padded, shards, N // k.shape[2], H, q.dtype.itemsize, spec, halo):
        if spec.window is not None:  # it limits full heads too
            exchange = own_halo
        elif one_branch:
            exchange = partial(head_by_head, all_keys, own_halo, division.mesh_axes)
    body = jax.shard_map(
        lambda *parts: exchange(Operands(*parts)),
        in_specs=(*(division.by_token,) * 3, division.by_segment, division.by_row),
        out_specs=division.by_token,
        check_vma=False,
    )
    return jax.tree.map(lambda x: x[:, :T], body(pad(q), pad(k), pad(v), choice, pad(ids)))


def with_all_keys(attend: Op, part: Operands) -> Any:
    """All keys and values on every shard; each shard has an early and a late chunk of the queries.

    The early chunks lie in the first half of the row, so that half of the keys is enough for them.
    """
    shards, shard = lax.axis_size(CONTEXT), lax.axis_index(CONTEXT)
    early, late = to_balanced(part.q_BTNH, CONTEXT)
    kv = lax.all_gather(jnp.concatenate([part.k_BTKH, part.v_BTKH], -1), CONTEXT, axis=1, tiled=True)

    def attend_chunk(q: jax.Array, chunk: jax.Array, chunks: int) -> Any:
        """Queries of one chunk over the first `chunks` chunks of keys, those after their own marked as padding."""
        at = {"chunk": chunk, "chunks": chunks, "size": q.shape[1]}
        k, v = jnp.split(keys_up_to(kv, **at), 2, axis=-1)
        return attend(q, k, v, part.choice_BMK, segment_ids=ids_up_to(part.ids_BT, **at))

    outs = attend_chunk(early, shard, shards), attend_chunk(late, 2 * shards - 1 - shard, 2 * shards)
    return jax.tree.map(lambda early, late: from_balanced(early, late, CONTEXT), *outs)


def with_halo(attend: Op, halo: Halo, spec: AttentionSpec, part: Operands) -> Any:
    """The shard's own keys, those right before, and the sinks of the segment that runs across its left border.

    This is exact for heads that see nothing else. Sinks are counted from the start of a segment and local blocks back
    from the query, so leaving out the blocks between them changes neither.
    """
    block, own = spec.block_size, part.q_BTNH.shape[1]
    kv = jnp.concatenate([part.k_BTKH, part.v_BTKH], -1)
    before = halo.before * block
    ids = jnp.pad(part.ids_BT, ((0, 0), (before, 0)))
    ids = lax.dynamic_slice_in_dim(ids, lax.axis_index(CONTEXT) * own, before + own, axis=1)
    pieces = [preceding(kv, before, CONTEXT), kv] if before else [kv]
    if halo.sinks:
        sinks, sink_ids = border_sinks(kv, part.ids_BT, halo.sinks, halo.before, block, CONTEXT)
        pieces, ids = [sinks, *pieces], jnp.concatenate([sink_ids, ids], axis=1)
    k, v = jnp.split(jnp.concatenate(pieces, axis=1), 2, axis=-1)
    return attend(part.q_BTNH, k, v, part.choice_BMK, segment_ids=ids)


def head_by_head(all_keys: Op, own_halo: Op, mesh_axes: tuple[str, ...], part: Operands) -> Any:
    """KV heads one after the other: all keys only for those that are full in some row of some device.

    All devices of the mesh decide alike, so that no collective waits for a device that took the other way.
    """
    B, own, N, H = part.q_BTNH.shape
    K, M = part.k_BTKH.shape[2], part.choice_BMK.shape[1]
    present_BM = (jnp.minimum(part.ids_BT, M)[:, None, :] == jnp.arange(1, M + 1)[None, :, None]).any(-1)
    full_K = ((part.choice_BMK == 0) & present_BM[..., None]).any((0, 1))
    full_K = lax.psum(full_K.astype(jnp.int32), mesh_axes) > 0

    def one_head(_: None, head: tuple[jax.Array, ...]) -> tuple[None, Any]:
        full, q, k, v, choice = head
        alone = Operands(q, k[:, :, None], v[:, :, None], choice[..., None], part.ids_BT)
        return None, lax.cond(full, all_keys, own_halo, alone)

    q_KBTGH = jnp.moveaxis(part.q_BTNH.reshape(B, own, K, N // K, H), 2, 0)
    of_heads = (jnp.moveaxis(x, 2, 0) for x in (part.k_BTKH, part.v_BTKH, part.choice_BMK))
    _, out = lax.scan(one_head, None, (full_K, q_KBTGH, *of_heads))
    return jax.tree.map(lambda x: jnp.moveaxis(x, 0, 2).reshape(B, own, N, *x.shape[4:]), out)
