"""A decoder layer, and its grouped-query attention whose KV heads are routed to full or sparse attention."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from elastic_jax.config import ModelConfig
from elastic_jax.errors import ConfigError
from elastic_jax.layers import MLP, Linear, RMSNorm
from elastic_jax.layout import Layout, per_token, squeeze_sequences
from elastic_jax.rope import RopeTables
from elastic_jax.router import AttentionRouter, SampledGates, argmax_gates, pool_keys, sample_gates
from elastic_jax.routing import skipped_share, to_modes
from elastic_jax.sharding.attention import on_mesh
from elastic_jax.sharding.division import context_size
from pallas_kernels import dual_attention, hybrid_attention, routed_attention, select_blocks


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class LayerContext:
    """What every layer of one forward pass shares."""

    layout: Layout
    pool_weights_BT: jax.Array
    rope: RopeTables
    router_bias: jax.Array
    sampled: SampledGates | None
    mixed: bool = field(metadata={"static": True})
    """Whether imposed gates lie between 0 and 1 and mix both attentions."""


class LayerRecord(NamedTuple):
    """What one layer reports: pooled keys `[B, M, K, H]`, router logits `[B, M, K, 2]`, gates `[B, M, K]` (1.0 = full),
    rotated keys and values, and the share of pairs that each head skipped `[B, M, K]` (see `Routing.skipped`)."""

    pooled: jax.Array
    logits: jax.Array
    gates: jax.Array
    k_BTKH: jax.Array
    v_BTKH: jax.Array
    skipped: jax.Array | None


class Attention(nnx.Module):
    """The projections of attention, with the optional q/k norm. What happens between them is the caller's."""

    def __init__(self, config: ModelConfig, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        D, N, K, H = config.hidden_size, config.num_heads, config.num_kv_heads, config.head_dim
        std = config.initializer_range
        self.q_proj = Linear((D,), (N, H), bias=config.qkv_bias, std=std, dtype=dtype, rngs=rngs)
        self.k_proj = Linear((D,), (K, H), bias=config.qkv_bias, std=std, dtype=dtype, rngs=rngs)
        self.v_proj = Linear((D,), (K, H), bias=config.qkv_bias, std=std, dtype=dtype, rngs=rngs)
        self.o_proj = Linear((N, H), (D,), bias=config.o_bias, std=std, dtype=dtype, rngs=rngs)
        norm = partial(RMSNorm, eps=config.rms_norm_eps, dtype=dtype)
        whole = config.qk_norm == "projection"
        self.q_norm = (norm(N, H) if whole else norm(H)) if config.qk_norm else None
        self.k_norm = (norm(K, H) if whole else norm(H)) if config.qk_norm else None
        self.config = config

    def project(self, x_BTD: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Queries, keys and values before RoPE: `[B, T, N, H]`, `[B, T, K, H]`, `[B, T, K, H]`."""
        q, k, v = self.q_proj(x_BTD), self.k_proj(x_BTD), self.v_proj(x_BTD)
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        return q, k, v


class DecoderLayer(nnx.Module):
    """Attention and MLP with residual connections, norms before or after each, and the layer's router."""

    def __init__(self, config: ModelConfig, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        norm = partial(RMSNorm, config.hidden_size, eps=config.rms_norm_eps, dtype=dtype)
        before = config.norms == "before"
        self.input_norm = norm() if before else None
        self.attn = Attention(config, dtype=dtype, rngs=rngs)
        self.attn_out_norm = None if before else norm()
        self.post_attn_norm = norm() if before else None
        self.mlp = MLP(config, dtype=dtype, rngs=rngs)
        self.mlp_out_norm = None if before else norm()
        self.residual_multiplier = config.residual_multiplier
        self.router = AttentionRouter(config.head_dim, config.router, std=config.initializer_range, rngs=rngs)

    def __call__[R](
        self, x_BTD: jax.Array, attend: Callable[[jax.Array, jax.Array, jax.Array], tuple[jax.Array, R]]
    ) -> tuple[jax.Array, R]:
        """The layer's output `[B, T, D]`, and what `attend` gave beside its own.

        `attend` takes queries, keys and values before RoPE, `[B, T, N or K, H]`, and returns attention `[B, T, N, H]`
        with anything else: prompts, decoding and shared prompts differ in it alone.
        """
        out, beside = attend(*self.project(x_BTD))
        x_BTD = x_BTD + self._share(self.attn.o_proj(out), self.attn_out_norm)
        inner_BTD = x_BTD if self.post_attn_norm is None else self.post_attn_norm(x_BTD)
        return x_BTD + self._share(self.mlp(inner_BTD), self.mlp_out_norm), beside

    def project(self, x_BTD: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Queries, keys and values of the layer's input, before RoPE; see `Attention.project`."""
        return self.attn.project(x_BTD if self.input_norm is None else self.input_norm(x_BTD))

    def _share(self, out_BTD: jax.Array, norm: RMSNorm | None) -> jax.Array:
        """What attention or MLP add to the residual stream."""
        out_BTD = out_BTD if norm is None else norm(out_BTD)
        return out_BTD if self.residual_multiplier == 1.0 else out_BTD * self.residual_multiplier


def attend_prompt(
    attention: Attention,
    router: AttentionRouter,
    context: LayerContext,
    gates: jax.Array | None,
    layer: jax.Array,
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
) -> tuple[jax.Array, LayerRecord]:
    """Routed attention of one layer over whole sequences: the output `[B, T, N, H]` and the layer's record.

    Args:
        gates: `[B, M, K]` imposes full (1.0) and sparse heads; None lets the router decide (or sample).
        layer: index of the layer: its rope, and part of the random key of sampled gates.
        q, k, v: as `Attention.project` returns them, before RoPE.
    """
    config, layout = attention.config, context.layout
    pooled = pool_keys(k, context.pool_weights_BT, layout)
    logits = router(pooled)
    q, k = context.rope.rotate(layer, q, k)
    sampled = context.sampled if gates is None else None
    if sampled is not None:
        gates = sample_gates(logits, jax.random.fold_in(sampled.key, layer), sampled.temperature)
    elif gates is None:
        gates = argmax_gates(logits, context.router_bias)
    both_run = sampled is not None or context.mixed
    mask = choose_blocks(config, q, k, None if both_run else gates, layout)
    full_mask, sparse_mask = (mask, None) if config.router.full_heads_choose else (None, mask)
    options = dict(
        block_mask=sparse_mask,
        full_block_mask=full_mask,
        segment_ids=layout.segment_ids,
        lengths=layout.lengths,
        **asdict(config.attention_spec),
    )
    if sampled is not None:
        out = on_mesh(routed_attention)(q, k, v, squeeze_sequences(gates, layout), **options)
    elif context.mixed:
        full, sparse = on_mesh(dual_attention)(q, k, v, **options)
        out = mix(gates, full, sparse, layout)
    else:
        out = on_mesh(hybrid_attention)(
            q, k, v, squeeze_sequences(to_modes(gates).astype(jnp.int32), layout), **options
        )
    skipped = None if mask is None else skipped_share(jax.lax.stop_gradient(gates), mask, layout, config)
    return out, LayerRecord(pooled, logits, gates, k, v, skipped)


def choose_blocks(
    config: ModelConfig, q_BTNH: jax.Array, k_BTKH: jax.Array, gates_BMK: jax.Array | None, layout: Layout
) -> jax.Array | None:
    """Mask of the blocks that XA heads keep, `[B, N, T / block, T / block]`; None under fa-ssa.

    Heads that are not XA under `gates_BMK` are not scored; None scores all, for training, which runs both branches.
    """
    router = config.router
    if router.pattern == "fa-ssa":
        return None
    if context_size() > 1:
        raise ConfigError(
            f"pattern {router.pattern} under a mesh with context {context_size()}: XA heads choose their blocks "
            "from whole rows. Use pattern fa-ssa, or a mesh with context 1."
        )
    if config.attention_scale is not None:  # the choice scales scores by 1 / sqrt(head_dim)
        q_BTNH = q_BTNH * (config.attention_scale * config.head_dim**0.5)
    return on_mesh(select_blocks)(
        q_BTNH,
        k_BTKH,
        threshold=router.xa_threshold,
        stride=router.xa_stride,
        block_size=router.block_size,
        heads=None if gates_BMK is None else ((gates_BMK > 0) == router.full_heads_choose).any(1),
        segment_ids=layout.segment_ids,
        lengths=layout.lengths,
    )


def mix(gates_BMK: jax.Array, full_BTNH: jax.Array, sparse_BTNH: jax.Array, layout: Layout) -> jax.Array:
    """gate * full + (1 - gate) * sparse, every token with the gates of its sequence."""
    z_BTK = jax.vmap(per_token, in_axes=(2, None), out_axes=2)(gates_BMK, layout)
    z_BTN1 = jnp.repeat(z_BTK, full_BTNH.shape[2] // z_BTK.shape[2], axis=2)[..., None]
    return (z_BTN1 * full_BTNH + (1 - z_BTN1) * sparse_BTNH).astype(full_BTNH.dtype)
