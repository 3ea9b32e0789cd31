"""How much attention there is to do: head shapes of real models, and (query, key) pairs by the rule of the kernels."""

from __future__ import annotations

from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np

from pallas_kernels.schedule import AttentionSpec, block_schedule

PUBLISHED = AttentionSpec(sink_blocks=1, local_blocks=16, block_size=128, window=None, scale=1.0)
"""The pattern of the paper, and the default of every op."""
STRIDE = 16
"""Tokens of a group in the scores of `select_blocks`, its default."""
TRAINING = 3.5
"""Matrix products of forward and backward, in those of the forward pass: two, then five."""


@dataclass(frozen=True)
class HeadShape:
    """The heads of one attention layer."""

    query_heads: int
    kv_heads: int
    head_dim: int

    @property
    def groups(self) -> int:
        return self.query_heads // self.kv_heads


MODELS = {
    "smollm2-135m": HeadShape(9, 3, 64),
    "llama-3.1-8b": HeadShape(32, 8, 128),
    "qwen3-4b": HeadShape(32, 8, 128),
    "qwen3-8b": HeadShape(32, 8, 128),
}


def visited_pairs(tokens: int, sparse: bool) -> int:
    """Causal (query, key) pairs that one head of a sequence attends to."""
    diag = jnp.arange(-(-tokens // PUBLISHED.block_size))
    steps = np.asarray(block_schedule(jnp.asarray(sparse), jnp.zeros_like(diag), diag, PUBLISHED).steps, np.int64)
    rows = np.minimum(PUBLISHED.block_size, tokens - np.arange(steps.size) * PUBLISHED.block_size)
    return int(((steps - 1) * PUBLISHED.block_size * rows + rows * (rows + 1) // 2).sum())


def hybrid_flops(shape: HeadShape, tokens: int, sparse_heads: int, *, training: bool) -> float:
    """Useful floating-point operations of one row with `sparse_heads` sparse KV heads: products of visible pairs only,
    none for what a kernel computes and masks or computes again."""
    full_heads = shape.kv_heads - sparse_heads
    pairs = full_heads * visited_pairs(tokens, False) + sparse_heads * visited_pairs(tokens, True)
    return 4 * shape.head_dim * shape.groups * pairs * (TRAINING if training else 1.0)


def routed_flops(shape: HeadShape, tokens: int, sparse_heads: int) -> float:
    """The same for a training step of `routed_attention`: both outputs forward, the chosen branch backward."""
    both = hybrid_flops(shape, tokens, 0, training=False)
    return both + hybrid_flops(shape, tokens, sparse_heads, training=False) * (TRAINING - 1)


def selection_flops(shape: HeadShape, tokens: int, heads: int) -> float:
    """Products of the antidiagonal scores of `heads` KV heads."""
    groups = -(-tokens // STRIDE)
    return 2 * STRIDE * shape.head_dim * groups * (groups + 1) / 2 * shape.groups * heads


def spread_heads(kv_heads: int, sparse_heads: int) -> list[int]:
    """Modes of the KV heads, the sparse ones spread evenly."""
    return [(head + 1) * sparse_heads // kv_heads - head * sparse_heads // kv_heads for head in range(kv_heads)]
