"""The attention router: pooled keys in, one full-or-sparse decision per KV head out (Elastic Attention, section 3)."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx

from elastic_jax.config import ModelConfig, RouterConfig
from elastic_jax.layers import Linear
from elastic_jax.layout import Layout, per_token

GUMBEL_EPS = 1e-8


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class SampledGates:
    """Training-time routing: Gumbel-softmax with straight-through, drawn for every layer, sequence and head."""

    key: jax.Array
    temperature: jax.Array | float


class MLP(nnx.Module):
    """Linear layers with SiLU between them, float32, named fc1, fc2, ... ."""

    def __init__(self, *widths: int, std: float, rngs: nnx.Rngs):
        self.depth = len(widths) - 1
        for i in range(self.depth):
            layer = Linear((widths[i],), (widths[i + 1],), bias=True, std=std, dtype=jnp.float32, rngs=rngs)
            setattr(self, f"fc{i + 1}", layer)

    def __call__(self, x: jax.Array) -> jax.Array:
        for i in range(self.depth):
            x = getattr(self, f"fc{i + 1}")(jax.nn.silu(x) if i else x)
        return x


class AttentionRouter(nnx.Module):
    """Task MLP and router MLP, shared by the KV heads of one layer (263,682 parameters at head_dim 128, width 4)."""

    def __init__(self, head_dim: int, config: RouterConfig, *, std: float = 0.02, rngs: nnx.Rngs):
        hidden = config.width * head_dim
        self.task = MLP(head_dim, hidden, head_dim, std=std, rngs=rngs)
        self.head = MLP(head_dim, hidden, head_dim, 2, std=std, rngs=rngs)

    def __call__(self, pooled: jax.Array) -> jax.Array:
        """Pooled keys `[..., K, H]` to float32 logits `[..., K, 2]`; index 0 = sparse, 1 = full."""
        return self.head(self.task(pooled.astype(jnp.float32)))


def pooling_weights(layout: Layout, prompt_lengths_BM: jax.Array, config: RouterConfig) -> jax.Array:
    """How often each token is pooled: float32 `[B, T]`, 0, 1 or 2.

    `boundary` counts the first and the last `pool_window` prompt tokens of every sequence; where the two overlap
    (prompts under twice the window) a token counts twice, as in the released inference code. `prompt` counts every
    prompt token once.
    """
    position = layout.positions_BT
    prompt = per_token(prompt_lengths_BM, layout)
    inside = (position < prompt).astype(jnp.float32)
    if config.pooling == "prompt":
        return inside
    head = (position < config.pool_window).astype(jnp.float32)
    tail = (position >= prompt - config.pool_window).astype(jnp.float32)
    return inside * (head + tail)


def pool_keys(k_BTKH: jax.Array, weights_BT: jax.Array, layout: Layout) -> jax.Array:
    """Weighted mean of the keys of every sequence: float32 `[B, M, K, H]`; zeros where nothing is pooled."""
    M = layout.lengths_BM.shape[1]
    member_BMT = jnp.where(layout.sequence_BT[:, None, :] == jnp.arange(M)[None, :, None], weights_BT[:, None, :], 0.0)
    total = jnp.einsum("bmt,btkh->bmkh", member_BMT, k_BTKH, preferred_element_type=jnp.float32)
    count = member_BMT.sum(-1)
    return total / jnp.maximum(count, 1.0)[..., None, None]


def argmax_gates(logits: jax.Array, router_bias: float | jax.Array = 0.0) -> jax.Array:
    """Inference rule: 1.0 (full) where the biased full logit wins, ties sparse. `[..., 2]` to `[...]`."""
    return (logits[..., 1] + router_bias > logits[..., 0]).astype(jnp.float32)


def sample_gates(logits: jax.Array, key: jax.Array, temperature: float | jax.Array) -> jax.Array:
    """Gumbel-softmax over the two classes, straight-through: value exactly 0.0 or 1.0 (full), softmax gradient."""
    uniform = jax.random.uniform(key, logits.shape, jnp.float32)
    gumbel = -jnp.log(-jnp.log(uniform + GUMBEL_EPS) + GUMBEL_EPS)
    noisy = logits + gumbel
    soft = jax.nn.softmax(noisy / temperature, axis=-1)[..., 1]
    hard = (noisy[..., 1] > noisy[..., 0]).astype(jnp.float32)
    return hard + (soft - jax.lax.stop_gradient(soft))


def fresh_router_params(config: ModelConfig, *, seed: int = 0) -> dict[str, jax.Array]:
    """Untrained router weights of all layers by canonical path: N(0, initializer_range) kernels, zero biases."""

    @nnx.split_rngs(splits=config.num_layers)
    @nnx.vmap
    def build(rngs: nnx.Rngs) -> AttentionRouter:
        return AttentionRouter(config.head_dim, config.router, std=config.initializer_range, rngs=rngs)

    flat = nnx.to_flat_state(nnx.state(build(nnx.Rngs(seed))))
    return {"layers.router." + ".".join(map(str, path)): leaf[...] for path, leaf in flat}
