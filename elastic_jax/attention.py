"""Grouped-query attention whose KV heads are routed to full or sparse attention, sequence by sequence."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from elastic_jax.config import ModelConfig
from elastic_jax.layers import Linear, RMSNorm
from elastic_jax.layout import Layout
from elastic_jax.rope import apply_rope
from elastic_jax.router import AttentionRouter, SampledGates, argmax_gates, pool_keys, sample_gates
from elastic_jax.routing import HeadMode, skipped_share
from pallas_kernels import hybrid_attention, routed_attention, select_blocks


class LayerContext(NamedTuple):
    """What every layer of one forward pass shares."""

    layout: Layout
    pool_weights_BT: jax.Array
    cos_BTh: jax.Array
    sin_BTh: jax.Array
    router_bias: jax.Array | float
    sampled: SampledGates | None


class LayerRecord(NamedTuple):
    """What one layer reports: router logits `[B, M, K, 2]`, gates `[B, M, K]` (1.0 = full), rotated keys and values.

    `skipped` `[B, M, K]`: see `Routing.skipped`.
    """

    logits: jax.Array
    gates: jax.Array
    k_BTKH: jax.Array
    v_BTKH: jax.Array
    skipped: jax.Array | None


class Attention(nnx.Module):
    """Projections, optional q/k norm, router on the keys before RoPE, hybrid attention."""

    def __init__(self, config: ModelConfig, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        D, N, K, H = config.hidden_size, config.num_heads, config.num_kv_heads, config.head_dim
        std = config.initializer_range
        self.q_proj = Linear((D,), (N, H), bias=config.qkv_bias, std=std, dtype=dtype, rngs=rngs)
        self.k_proj = Linear((D,), (K, H), bias=config.qkv_bias, std=std, dtype=dtype, rngs=rngs)
        self.v_proj = Linear((D,), (K, H), bias=config.qkv_bias, std=std, dtype=dtype, rngs=rngs)
        self.o_proj = Linear((N, H), (D,), bias=config.o_bias, std=std, dtype=dtype, rngs=rngs)
        self.q_norm = RMSNorm(H, eps=config.rms_norm_eps, dtype=dtype) if config.qk_norm else None
        self.k_norm = RMSNorm(H, eps=config.rms_norm_eps, dtype=dtype) if config.qk_norm else None
        self.config = config

    def project(self, x_BTD: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Queries, keys and values before RoPE: `[B, T, N, H]`, `[B, T, K, H]`, `[B, T, K, H]`."""
        q, k, v = self.q_proj(x_BTD), self.k_proj(x_BTD), self.v_proj(x_BTD)
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        return q, k, v

    def __call__(
        self, x_BTD: jax.Array, router: AttentionRouter, context: LayerContext, mode: jax.Array | None, layer: jax.Array
    ) -> tuple[jax.Array, LayerRecord]:
        """`mode` `[B, M, K]` imposes head modes; None lets the router decide (or sample, in training)."""
        q, k, v = self.project(x_BTD)
        layout = context.layout
        logits = router(pool_keys(k, context.pool_weights_BT, layout))
        q = apply_rope(q, context.cos_BTh, context.sin_BTh)
        k = apply_rope(k, context.cos_BTh, context.sin_BTh)
        sparse = self.config.router
        options = dict(
            sink_blocks=sparse.sink_blocks,
            local_blocks=sparse.local_blocks,
            block_size=sparse.block_size,
            segment_ids=layout.segment_ids,
            lengths=layout.lengths,
            window=self.config.sliding_window,
        )
        mask_name = "full_block_mask" if sparse.pattern == "xa-ssa" else "block_mask"
        if mode is None and context.sampled is not None:
            key = jax.random.fold_in(context.sampled.key, layer)
            gates = sample_gates(logits, key, context.sampled.temperature)
            mask = self.choose_blocks(q, k, None, layout)
            out = routed_attention(q, k, v, per_row(gates, layout), **options, **{mask_name: mask})
        else:
            if mode is None:
                gates = argmax_gates(logits, context.router_bias)
            else:
                gates = (mode == HeadMode.FULL).astype(jnp.float32)
            modes = jnp.where(gates > 0, HeadMode.FULL, HeadMode.SPARSE).astype(jnp.int32)
            mask = self.choose_blocks(q, k, gates, layout)
            out = hybrid_attention(q, k, v, per_row(modes, layout), **options, **{mask_name: mask})
        skipped = None if mask is None else skipped_share(jax.lax.stop_gradient(gates), mask, layout, self.config)
        return self.o_proj(out), LayerRecord(logits, gates, k, v, skipped)

    def choose_blocks(
        self, q_BTNH: jax.Array, k_BTKH: jax.Array, gates_BMK: jax.Array | None, layout: Layout
    ) -> jax.Array | None:
        """Mask of the blocks that XA heads keep, `[B, N, T / block, T / block]`; None under fa-ssa.

        Heads that are not XA under `gates_BMK` are not scored; None scores all, since training runs both branches.
        """
        sparse = self.config.router
        if sparse.pattern == "fa-ssa":
            return None
        full_heads_choose = sparse.pattern == "xa-ssa"
        return select_blocks(
            q_BTNH,
            k_BTKH,
            threshold=sparse.xa_threshold,
            stride=sparse.xa_stride,
            block_size=sparse.block_size,
            heads=None if gates_BMK is None else ((gates_BMK > 0) == full_heads_choose).any(1),
            segment_ids=layout.segment_ids,
            lengths=layout.lengths,
        )


def per_row(values_BMK: jax.Array, layout: Layout) -> jax.Array:
    """Drops the sequence axis of rows that hold one sequence each: `[B, M, K]` to `[B, K]` unless packed."""
    return values_BMK if layout.packed else values_BMK[:, 0]
