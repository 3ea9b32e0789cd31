"""Speed of attention alone: is skipped work skipped time, and how do we compare with torch?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

from eval.bench.torch import torch_attention, torch_job
from eval.bench.work import HeadShape, kept_share
from eval.harness.timing import fastest, seconds
from pallas_kernels import hybrid_attention, routed_attention

if TYPE_CHECKING:
    from eval.bench.settings import BenchAttentionSettings


@dataclass(frozen=True)
class AttentionSpeed:
    """Two programs timed in turns."""

    compared: str
    tokens: int
    seconds: float
    baseline_seconds: float
    allowed: float | None = None
    """Speed-up that the skipped work allows."""

    @property
    def speed_up(self) -> float:
        return self.baseline_seconds / self.seconds


def full_against_torch(settings: BenchAttentionSettings) -> AttentionSpeed:
    """All heads full, against torch's fused causal attention.

    Raises:
        ConfigError: that Python cannot run torch.
    """
    q, k, v = _operands(settings, settings.tokens, settings.query_heads, settings.kv_heads)
    modes = jnp.zeros((1, settings.kv_heads), jnp.int8)
    full = jax.jit(hybrid_attention)
    shape = HeadShape(settings.query_heads, settings.kv_heads, settings.head_dim)
    job = torch_job(shape, settings.tokens, settings.dtype)
    with torch_attention(str(settings.torch_python)) as ask:
        programs = {"ours": lambda: seconds(full, q, k, v, modes), "torch": lambda: ask(job)}
        best = fastest(programs, rounds=settings.rounds)
    return AttentionSpeed("full attention / torch", settings.tokens, best["ours"], best["torch"])


def mixture_against_full(settings: BenchAttentionSettings) -> AttentionSpeed:
    """7 of 10 KV heads sparse, against the same program with all heads full."""
    groups = settings.query_heads // settings.kv_heads
    q, k, v = _operands(settings, settings.sparse_tokens, 10 * groups, 10)
    attend = jax.jit(hybrid_attention)
    modes = {"full": jnp.zeros((1, 10), jnp.int8), "mixture": jnp.array([[0, 1, 1, 0, 1, 1, 0, 1, 1, 1]], jnp.int8)}
    best = fastest(
        {name: lambda mode=mode: seconds(attend, q, k, v, mode) for name, mode in modes.items()},
        rounds=settings.rounds,
    )
    allowed = 1 / (0.3 + 0.7 * kept_share(settings.sparse_tokens))
    return AttentionSpeed("70 % sparse / full", settings.sparse_tokens, best["mixture"], best["full"], allowed)


def training_against_full(settings: BenchAttentionSettings) -> AttentionSpeed:
    """Forward and backward of routed attention with all heads full, against plain full attention's."""
    operands = _operands(settings, settings.tokens, settings.query_heads, settings.kv_heads)
    modes = jnp.zeros((1, settings.kv_heads), jnp.int8)

    def total(out: jax.Array) -> jax.Array:
        return jnp.sum(out.astype(jnp.float32))

    full = jax.jit(jax.grad(lambda q, k, v: total(hybrid_attention(q, k, v, modes)), (0, 1, 2)))
    routed = jax.jit(jax.grad(lambda q, k, v, z: total(routed_attention(q, k, v, z)), (0, 1, 2, 3)))
    gates = jnp.ones((1, settings.kv_heads))
    best = fastest(
        {"full": lambda: seconds(full, *operands), "routed": lambda: seconds(routed, *operands, gates)},
        rounds=settings.rounds,
    )
    return AttentionSpeed("routed / full, forward + backward", settings.tokens, best["routed"], best["full"])


def _operands(settings: BenchAttentionSettings, tokens: int, heads: int, kv_heads: int) -> list[jax.Array]:
    keys = jax.random.split(jax.random.key(0), 3)
    shapes = [(1, tokens, n, settings.head_dim) for n in (heads, kv_heads, kv_heads)]
    return [jax.random.normal(key, shape, settings.dtype) for key, shape in zip(keys, shapes, strict=True)]
