"""What decode attention reads of a cache: packed groups in pages, and tokens that are kept exactly."""

from __future__ import annotations

from typing import NamedTuple

import jax

from pallas_kernels.kv_quant.xla import WORD_BITS, unpack_xla


class Pages(NamedTuple):
    """Groups of G consecutive tokens of one KV head; every field has a leading axis of pages.

    Keys are quantised by channel over the G tokens, values by token over H / C channels.
    """

    k_codes: jax.Array
    """uint32 `[pages, G * bits / 32, H]`, packed as by `pack`; v_codes alike."""
    k_scale: jax.Array
    """`[pages, H]`; k_zero alike."""
    k_zero: jax.Array
    k_norm: jax.Array | None
    """`[pages, G]`: keys are stored divided by this; None when they are stored as they are."""
    v_codes: jax.Array
    v_scale: jax.Array
    """`[pages, G, C]`; v_zero alike."""
    v_zero: jax.Array
    holes: jax.Array
    """uint32 `[pages, G / 32, 1]`, packed bits: tokens that are not in this group but among the exact ones."""

    @property
    def group(self) -> int:
        return self.v_scale.shape[-2]

    @property
    def bits(self) -> int:
        return self.k_codes.shape[-2] * WORD_BITS // self.group


class CacheView(NamedTuple):
    """One layer of a cache. A row holds groups 0 .. quantized / G - 1, and exact tokens at any positions."""

    pages: Pages
    table_BKJ: jax.Array
    """int32: page of each group of each (row, KV head); only pages of groups that a query may see are read."""
    quantized_B: jax.Array
    """int32: tokens of each row that lie in groups; a multiple of G."""
    exact_k_BKEH: jax.Array
    exact_v_BKEH: jax.Array
    exact_pos_BKE: jax.Array
    """int32 positions, -1 where a slot is empty. They hold the queries' own tokens."""


def hole_mask(holes: jax.Array) -> jax.Array:
    """bool `[..., G]` from packed bits `[..., G / 32, 1]`: the 1-bit case of `unpack`."""
    return unpack_xla(holes, 1)[..., 0] > 0


def fold_query_heads(q_BTNH: jax.Array, kv_heads: int) -> jax.Array:
    """`[B, T, N, H]` -> `[B, K, R, H]`: query heads of a KV head and their queries as rows, r = head * T + query."""
    B, T, N, H = q_BTNH.shape
    return q_BTNH.reshape(B, T, kv_heads, N // kv_heads, H).transpose(0, 2, 3, 1, 4).reshape(B, kv_heads, -1, H)


def unfold_query_heads(x_BKRH: jax.Array, queries: int) -> jax.Array:
    """Inverse of `fold_query_heads`."""
    B, K, R, H = x_BKRH.shape
    x = x_BKRH.reshape(B, K, R // queries, queries, H).transpose(0, 3, 1, 2, 4)
    return x.reshape(B, queries, K * R // queries, H)
