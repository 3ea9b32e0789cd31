"""The record of which heads ran full and which sparse, and the two sparsity measures made from it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
import numpy as np

from elastic_jax.config import HeadMode, ModelConfig
from elastic_jax.errors import ConfigError, ShapeError, shown
from elastic_jax.heads import Heads
from elastic_jax.layout import Layout


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Routing:
    """Decisions of all routers: `mode` int8 `[L, B, K]` (`[L, B, M, K]` packed), `logits` float32 `[..., 2]`.

    `skipped` float32, shaped like `mode`, is the share of causal pairs that each head skipped; only the patterns that
    choose blocks by content (fa-xa, xa-ssa) record it.
    """

    mode: jax.Array
    logits: jax.Array | None = None
    skipped: jax.Array | None = None

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
            if self.skipped is None:
                raise ShapeError(
                    f"this routing does not say which blocks pattern {config.router.pattern!r} kept; take the routing "
                    "that a forward pass returns."
                )
            return (self.skipped[-1:] if last_layer else self.skipped).mean(axis=(0, -1))
        sparse = (self.mode[-1:] if last_layer else self.mode) == HeadMode.SPARSE
        return sparse.mean(axis=(0, -1), dtype=jnp.float32) * streaming_skip_ratio(lengths, config)

    def measures(self, lengths: jax.Array | np.ndarray, config: ModelConfig, row: int) -> dict[str, float]:
        """`msr`, `esr` and `esr_last_layer` of one row."""
        lengths = jnp.asarray(lengths)
        return {
            "msr": float(self.msr()[row]),
            "esr": float(self.esr(lengths, config)[row]),
            "esr_last_layer": float(self.esr(lengths, config, last_layer=True)[row]),
        }


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Gates:
    """Gates imposed on all heads: `z` float32 `[L, B, K]` (`[L, B, M, K]` packed), 1.0 = full and 0.0 = sparse."""

    z: jax.Array
    mixed: bool = field(default=False, metadata={"static": True})
    """Whether gates may lie between 0 and 1: heads then give z * full + (1 - z) * sparse, differentiable in z, which
    measures what full attention of a head is worth."""


def streaming_skip_ratio(lengths: jax.Array, config: ModelConfig) -> jax.Array:
    """Share of the causal pairs of a sequence that sinks + local window leave out; shape of `lengths`."""
    block = config.router.block_size
    kept_blocks = config.router.sink_blocks + config.router.local_blocks
    lengths = jnp.asarray(lengths)
    whole, rest = lengths // block, (lengths % block).astype(jnp.float32)
    surplus = jnp.maximum(whole - kept_blocks, 0).astype(jnp.float32)
    last_surplus = jnp.maximum(whole + 1 - kept_blocks, 0).astype(jnp.float32)
    skipped = block * (block * surplus * (surplus + 1) / 2 + rest * last_surplus)
    pairs = lengths.astype(jnp.float32) * (lengths + 1).astype(jnp.float32) / 2
    return skipped / jnp.maximum(pairs, 1.0)


def skipped_share(gates_BMK: jax.Array, mask_BNIJ: jax.Array, layout: Layout, config: ModelConfig) -> jax.Array:
    """Share of the causal pairs of each sequence that its heads skip, float32 `[B, M, K]`, under fa-xa or xa-ssa.

    `mask_BNIJ` holds the blocks that the XA heads kept; a KV head counts the mean of its query heads.
    """
    block, (B, N, blocks, _) = config.router.block_size, mask_BNIJ.shape
    M, K = gates_BMK.shape[1:]
    sequence_BT = jnp.pad(layout.sequence_BT, ((0, 0), (0, -layout.sequence_BT.shape[1] % block)), constant_values=M)
    sequence_BIs = sequence_BT.reshape(B, blocks, block)
    rows_BI = (sequence_BIs < M).sum(-1, dtype=jnp.float32)
    before_BKI = jnp.tril(mask_BNIJ, -1).sum(-1).reshape(B, K, N // K, blocks).mean(2)
    kept_BKI = rows_BI[:, None] * (block * before_BKI + (rows_BI[:, None] + 1) / 2)
    member_BMI = (sequence_BIs[:, None, :, 0] == jnp.arange(M)[None, :, None]).astype(jnp.float32)
    kept_BMK = jnp.einsum("bmi,bki->bmk", member_BMI, kept_BKI)
    length_BM1 = layout.lengths_BM[..., None].astype(jnp.float32)
    by_choice = 1 - kept_BMK / jnp.maximum(length_BM1 * (length_BM1 + 1) / 2, 1.0)
    by_choice = jnp.where(length_BM1 > 0, by_choice, 0.0)
    if config.router.pattern == "fa-xa":
        return (1 - gates_BMK) * by_choice
    return gates_BMK * by_choice + (1 - gates_BMK) * streaming_skip_ratio(layout.lengths_BM, config)[..., None]


def to_modes(gates: jax.Array) -> jax.Array:
    """Head modes int8 of gates of the same shape: full where a gate is above 0."""
    return jnp.where(gates > 0, HeadMode.FULL, HeadMode.SPARSE).astype(jnp.int8)


type Imposed = Routing | Gates | Heads | jax.Array | str
"""What a caller may impose in place of the routers' decisions, see `gates_from`."""


def static_gates(heads: Heads, config: ModelConfig) -> jax.Array:
    """Gates float32 `[L, K]` of calibrated heads at their cut.

    Raises:
        ConfigError: heads of another model, or of other sparse heads.
    """
    heads.check_fits(config)
    return jnp.asarray(heads.modes() == HeadMode.FULL, jnp.float32)


def same_for_rows(z_LK: jax.Array, *rows: int) -> Gates:
    """Gates `[L, *rows, K]` of heads that are the same for every sequence, from float32 `[L, K]`."""
    z = jnp.expand_dims(z_LK, tuple(range(1, 1 + len(rows))))
    return Gates(jnp.broadcast_to(z, (z_LK.shape[0], *rows, z_LK.shape[1])))


def check_router_bias(router_bias: object) -> None:
    """Raises `ConfigError` unless it is a finite number: with NaN no head would run full."""
    try:
        fits = not isinstance(router_bias, bool | str) and math.isfinite(router_bias)  # pyrefly: ignore[bad-argument-type]
    except TypeError:
        fits = False
    if not fits:
        raise ConfigError(f"router_bias is {shown(router_bias)}; want a finite number.")


def gates_from(routing: Imposed | None, config: ModelConfig, *rows: int) -> Gates | None:
    """Gates of all heads from a routing as callers give it; None stays None: the routers decide.

    Args:
        routing: "full", "sparse", a `Routing`, an array of modes (see `HeadMode`), gates, or calibrated heads, which
            are the same for every row.
        rows: rows of the call and, if these are packed, sequences in a row.

    Raises:
        ShapeError: another word, another shape than `[L, *rows, K]`, or modes that are not whole numbers.
        ConfigError: heads of another model or of other sparse heads.
    """
    if routing is None:
        return None
    shape = (config.num_layers, *rows, config.num_kv_heads)
    if isinstance(routing, str):
        if routing not in ("full", "sparse"):
            raise ShapeError(
                f"routing={routing!r}; want 'full', 'sparse', 'heads', 'routers', a Routing, Heads, an array of modes "
                "or None."
            )
        return Gates(jnp.full(shape, float(routing == "full")))
    if isinstance(routing, Heads):
        return same_for_rows(static_gates(routing, config), *rows)
    given = routing.z if isinstance(routing, Gates) else routing.mode if isinstance(routing, Routing) else routing
    array = jnp.asarray(given)
    if array.shape != shape:
        raise ShapeError(f"routing has shape {array.shape}; want {shape}: layers, batch rows, KV heads of this call.")
    if isinstance(routing, Gates):
        return routing
    if not jnp.issubdtype(array.dtype, jnp.integer):
        raise ShapeError(f"routing holds {array.dtype}; want whole numbers: 0 is full, 1 is sparse (HeadMode).")
    return Gates((array == HeadMode.FULL).astype(jnp.float32))
