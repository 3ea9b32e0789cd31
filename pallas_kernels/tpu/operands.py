"""From public arrays to the operands of a launch and back."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from pallas_kernels.blocks import RowLayout, clear_padding, fold_keys, fold_queries, unfold_queries
from pallas_kernels.call import AttentionCall
from pallas_kernels.tpu.limits import LANES
from pallas_kernels.tpu.plan import LaunchSizes


class Operands(NamedTuple):
    """Whole blocks; S = block."""

    q_PQRH: jax.Array
    k_PJSH: jax.Array
    v_PJSH: jax.Array


def launch_operands(call: AttentionCall, sparse: jax.Array) -> tuple[Operands, RowLayout, LaunchSizes]:
    """Operands, where the sequences lie, and the sizes of a launch; `sparse` is `[B, K]` or `[B, M, K]`.

    Raises:
        ValueError: blocks that are no whole lanes, on a TPU (the interpreter takes any).
    """
    if jax.default_backend() == "tpu" and call.spec.block_size % LANES:
        raise ValueError(f"block_size is {call.spec.block_size}; on a TPU wanted a multiple of {LANES}.")
    B, _, K, H = call.k_BSKH.shape
    geometry, rows = call.geometry, call.rows()
    q, k, v = (clear_padding(x, rows.valid_BS) for x in (call.q_BTNH, call.k_BSKH, call.v_BSKH))
    sizes = LaunchSizes(B, K, 1 if sparse.ndim == 2 else sparse.shape[1], call.groups, H, geometry)
    q = fold_queries(q, K, geometry).reshape(B * K, geometry.query_blocks, -1, H)
    q = jnp.pad(q, ((0, 0), (0, sizes.query_blocks - geometry.query_blocks), (0, 0), (0, 0)))
    k, v = (fold_keys(x, geometry).reshape(B * K, geometry.key_blocks, geometry.block, H) for x in (k, v))
    return Operands(q, k, v), rows, sizes


def unfold_output(out_PQRH: jax.Array, sizes: LaunchSizes) -> jax.Array:
    """`[P, Q, R, H]` -> `[B, T, N, H]`, for any H."""
    out = out_PQRH[:, : sizes.geometry.query_blocks]
    return unfold_queries(out.reshape(sizes.batch, sizes.kv_heads, *out.shape[1:]), sizes.geometry)
