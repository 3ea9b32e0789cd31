"""From public arrays to the operands of a launch and back."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from pallas_kernels.blocks import (
    Geometry,
    Rows,
    clear_padding,
    describe_rows,
    fold_keys,
    fold_queries,
    unfold_queries,
)
from pallas_kernels.schedule import AttentionSpec
from pallas_kernels.tpu.limits import LANES
from pallas_kernels.tpu.plan import Layout


class Operands(NamedTuple):
    """Whole blocks; S = block."""

    q_PQRH: jax.Array
    k_PJSH: jax.Array
    v_PJSH: jax.Array


def launch_operands(
    q_BTNH: jax.Array,
    k_BSKH: jax.Array,
    v_BSKH: jax.Array,
    choice: jax.Array,
    spec: AttentionSpec,
    lengths: jax.Array | None,
    segment_ids: jax.Array | None,
) -> tuple[Operands, Rows, Layout]:
    """Operands, and the sizes of a launch whose modes have the shape of `choice`.

    Raises:
        ValueError: blocks that are no whole lanes, on a TPU (the interpreter takes any).
    """
    if jax.default_backend() == "tpu" and spec.block_size % LANES:
        raise ValueError(f"block_size is {spec.block_size}; on a TPU wanted a multiple of {LANES}.")
    B, S, K, H = k_BSKH.shape
    geometry = Geometry(spec.block_size, q_BTNH.shape[1], S)
    rows = describe_rows(B, geometry, lengths, segment_ids)
    q, k, v = (clear_padding(x, rows.valid_BS) for x in (q_BTNH, k_BSKH, v_BSKH))
    segments = 1 if choice.ndim == 2 else choice.shape[1]
    layout = Layout(B, K, segments, q_BTNH.shape[2] // K, H, geometry)
    q = fold_queries(q, K, geometry).reshape(B * K, geometry.query_blocks, -1, H)
    q = jnp.pad(q, ((0, 0), (0, layout.query_blocks - geometry.query_blocks), (0, 0), (0, 0)))
    k, v = (fold_keys(x, geometry).reshape(B * K, geometry.key_blocks, geometry.block, H) for x in (k, v))
    return Operands(q, k, v), rows, layout


def unfold_output(out_PQRH: jax.Array, layout: Layout) -> jax.Array:
    """`[P, Q, R, H]` -> `[B, T, N, H]`, whatever H is."""
    out = out_PQRH[:, : layout.geometry.query_blocks]
    return unfold_queries(out.reshape(layout.batch, layout.kv_heads, *out.shape[1:]), layout.geometry)
