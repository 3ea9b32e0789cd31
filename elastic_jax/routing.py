"""The record of which heads ran full and which sparse, and the two sparsity measures made from it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

import jax
import jax.numpy as jnp

from elastic_jax.config import ModelConfig
from elastic_jax.errors import ShapeError


class HeadMode(IntEnum):
    """Attention of one KV head for one sequence."""

    FULL = 0
    SPARSE = 1


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Routing:
    """Decisions of all routers: `mode` int8 `[L, B, K]` (`[L, B, M, K]` packed), `logits` float32 `[..., 2]`."""

    mode: jax.Array
    logits: jax.Array | None = None

    def msr(self) -> jax.Array:
        """Model sparsity ratio: share of (layer, KV head) pairs that are sparse, `[B]` (`[B, M]` packed)."""
        return (self.mode == HeadMode.SPARSE).mean(axis=(0, -1), dtype=jnp.float32)

    def esr(self, lengths: jax.Array, config: ModelConfig, *, last_layer: bool = False) -> jax.Array:
        """Effective sparsity ratio: share of causal (query, key) pairs skipped, `[B]` (`[B, M]` packed).

        Mean over all layers, or of the last layer alone (the paper's definition 2.2). `lengths` are the tokens of
        each sequence, shaped like the result.
        """
        lengths = jnp.asarray(lengths)
        if lengths.shape != self.mode.shape[1:-1]:
            raise ShapeError(f"lengths has shape {lengths.shape}; want {self.mode.shape[1:-1]}, one per sequence.")
        if config.router.pattern != "fa-ssa":
            raise NotImplementedError(f"ESR of pattern {config.router.pattern!r} needs the kept-block masks.")
        sparse = (self.mode[-1:] if last_layer else self.mode) == HeadMode.SPARSE
        return sparse.mean(axis=(0, -1), dtype=jnp.float32) * streaming_skip_ratio(lengths, config)


def streaming_skip_ratio(lengths: jax.Array, config: ModelConfig) -> jax.Array:
    """Share of the causal pairs of a sequence that sinks + local window leave out; shape of `lengths`."""
    block = config.router.block_size
    kept_blocks = config.router.sink_blocks + config.router.local_blocks
    lengths = jnp.asarray(lengths)
    whole, rest = lengths // block, lengths % block
    surplus = jnp.maximum(whole - kept_blocks, 0).astype(jnp.float32)
    last_surplus = jnp.maximum(whole + 1 - kept_blocks, 0).astype(jnp.float32)
    skipped = block * (block * surplus * (surplus + 1) / 2 + rest * last_surplus)
    pairs = lengths.astype(jnp.float32) * (lengths + 1) / 2
    return skipped / jnp.maximum(pairs, 1.0)


def modes_from(routing: Routing | jax.Array | str, shape: tuple[int, ...]) -> jax.Array:
    """Head modes int32 of `shape` from "full", "sparse", a `Routing` or an array of modes."""
    if isinstance(routing, str):
        if routing not in ("full", "sparse"):
            raise ShapeError(f"routing={routing!r}; want 'full', 'sparse', a Routing, an array of modes or None.")
        return jnp.full(shape, HeadMode[routing.upper()], jnp.int32)
    mode = jnp.asarray(routing.mode if isinstance(routing, Routing) else routing, jnp.int32)
    if mode.shape != shape:
        raise ShapeError(f"routing has shape {mode.shape}; want {shape}: layers, batch rows, KV heads of this call.")
    return mode
