"""The quantised cache: old tokens in packed groups, new ones and outliers exact; a head stores only what it may read.

A token enters a ring of exact tokens. When a row has `residual + group` of them, the oldest group is flushed: its
outliers are traced, the rest is packed into a page. A bounded number of rows is flushed at each step, the fullest
first, and the ring has room for the rows that wait. What is stored depends on the tokens alone, not on whether they
came with the prompt or one by one.

Letters: E exact slots of a head (pool, store, ring), F slots of the ring, J groups of a row.

Keys may be rotated by a Hadamard matrix over the head dimension. It spreads outlier channels over all of them; queries
are rotated too, so dot products stay the same.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from elastic_jax.config import HeadMode
from elastic_jax.errors import ShapeError
from elastic_jax.kv_cache.config import CacheConfig
from elastic_jax.kv_cache.outliers import EMPTY, Outliers, compete, forget, token_scores
from elastic_jax.kv_cache.pages import PagePlan, empty_pages, quantize_tokens, quantized_tokens, tree_bytes
from pallas_kernels import CacheView, Pages, decode_attention
from pallas_kernels.schedule import AttentionSpec, visible_tokens


def hadamard(x: jax.Array) -> jax.Array:
    """Multiplies the last axis by an orthonormal symmetric Hadamard matrix; keeps the type.

    A width that is no power of two is rotated in blocks of its largest power-of-two divisor. Butterflies of single
    additions: the result for a token does not depend on the tokens beside it, as a matrix product's might.
    """
    width = x.shape[-1]
    block = width & -width
    y = x.astype(jnp.float32)
    half = 1
    while half < block:
        pairs = y.reshape(*x.shape[:-1], -1, 2, half)
        a, b = pairs[..., 0, :], pairs[..., 1, :]
        y = jnp.stack([a + b, a - b], -2).reshape(x.shape)
        half *= 2
    return (y * block**-0.5).astype(x.dtype)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class QuantizedCache:
    """State of all layers; row b holds `lengths[b]` tokens, `quantized[b]` of them flushed from the ring."""

    pages: Pages
    table: jax.Array
    """int32 `[L, B, K, J]`: page of each group."""
    exact_k: jax.Array
    """`[L, B, K, E, H]`: pool and store of outliers, then the ring, where position p has slot p mod F."""
    exact_v: jax.Array
    outlier_pos: jax.Array
    """int32 `[L, B, K, E - F]`"""
    score: jax.Array
    """float32 `[L, B, K, outliers]`"""
    frozen: jax.Array
    """bool `[L, B, K]`"""
    mode: jax.Array
    """int8 `[L, B, K]`: what each head attends to, and so what it keeps."""
    quantized: jax.Array
    lengths: jax.Array
    config: CacheConfig = field(metadata={"static": True})
    spec: AttentionSpec = field(metadata={"static": True})

    @property
    def nbytes(self) -> int:
        """Bytes of every array of the state."""
        return tree_bytes(self)

    @property
    def ring(self) -> int:
        """Slots of the ring."""
        return self.exact_k.shape[3] - self.outlier_pos.shape[3]

    @classmethod
    def blank(
        cls,
        shape: tuple[int, int, int, int],
        *,
        ring: int,
        groups: int,
        pages: int,
        dtype: jnp.dtype,
        config: CacheConfig,
        spec: AttentionSpec,
    ) -> QuantizedCache:
        """Rows without tokens; `shape` is layers, rows, KV heads, head dimension.

        Args:
            ring: slots of the ring of each row.
            groups: packed groups of a row at most.
            pages: size of the pool that all rows share.
        """
        L, B, K, H = shape
        kv = (jnp.zeros((L, B, 1, K, H), dtype),) * 2
        table, mode, lengths = jnp.zeros((L, B, K, groups), jnp.int32), jnp.zeros((L, B, K), jnp.int8), jnp.zeros(B)
        return fill_rows(empty_pages(pages, H, config), kv, lengths, mode, table, ring, config, spec)

    @classmethod
    def from_prefill(
        cls,
        kv: tuple[jax.Array, jax.Array],
        lengths: jax.Array,
        mode: jax.Array,
        plan: PagePlan,
        config: CacheConfig,
        spec: AttentionSpec,
    ) -> QuantizedCache:
        """From keys and values `[L, B, T, K, H]` of right-padded rows; `plan` has room for what is to come.

        Raises:
            ShapeError: a row is longer than the keys, or than the table of its pages.
        """
        if not isinstance(lengths, jax.core.Tracer):
            _check_lengths(np.asarray(lengths), kv[0].shape[2], plan, config)
        return _from_prefill(kv, lengths, mode, jnp.asarray(plan.table), plan.pages, config, spec)

    def write(
        self, layer: jax.Array, k_BTKH: jax.Array, v_BTKH: jax.Array, counts_B: jax.Array | None = None
    ) -> QuantizedCache:
        """Puts the next tokens of every row, the first `counts_B` of the T, into the ring; counts none."""
        k_BTKH = hadamard(k_BTKH) if self.config.rotates else k_BTKH
        B, T = k_BTKH.shape[:2]
        rows = jnp.arange(B)[:, None]
        offset = jnp.arange(T)[None]
        slots = self.outlier_pos.shape[3] + (self.lengths[:, None] + offset) % self.ring
        if counts_B is not None:
            out_of_bounds = self.exact_k.shape[3] + offset  # such writes are dropped
            slots = jnp.where(offset < counts_B[:, None], slots, out_of_bounds)
        return replace(
            self,
            exact_k=self.exact_k.at[layer, rows, :, slots].set(k_BTKH, unique_indices=True, mode="drop"),
            exact_v=self.exact_v.at[layer, rows, :, slots].set(v_BTKH, unique_indices=True, mode="drop"),
        )

    def advance(self) -> QuantizedCache:
        """Counts the token just written in every layer, then flushes the fullest rows that have a group to give."""
        cache = replace(self, lengths=self.lengths + 1)
        waiting = cache.lengths - cache.quantized
        ready = (waiting >= self.config.residual + self.config.group).sum()
        rows = jnp.minimum(ready, flushes_per_step(self.lengths.shape[0], self.config))
        return lax.fori_loop(0, rows, lambda _, c: c.flush(jnp.argmax(c.lengths - c.quantized)), cache)

    def attend(self, layer: jax.Array, q_BTNH: jax.Array, counts_B: jax.Array | None = None) -> jax.Array:
        """Attention of the tokens just written over the past that each head's mode allows: `[B, T, N, H]`.

        Results after the first `counts_B` tokens of a row have no meaning: those tokens are not in the cache.
        """
        q_BTNH = hadamard(q_BTNH) if self.config.rotates else q_BTNH
        newest_B = self.lengths + (q_BTNH.shape[1] if counts_B is None else counts_B) - 1
        ring_pos_BF = ring_positions(newest_B, self.ring)
        ring_pos_BF = jnp.where(ring_pos_BF >= self.quantized[:, None], ring_pos_BF, EMPTY)
        outlier_pos = self.outlier_pos[layer]
        ring_pos_BKF = jnp.broadcast_to(ring_pos_BF[:, None], (*outlier_pos.shape[:2], self.ring))
        view = CacheView(
            self.pages,
            self.table[layer],
            self.quantized,
            self.exact_k[layer],
            self.exact_v[layer],
            jnp.concatenate([outlier_pos, ring_pos_BKF], -1),
        )
        return decode_attention(q_BTNH, view, self.lengths, self.mode[layer], **asdict(self.spec))

    def flush(self, row: jax.Array) -> QuantizedCache:
        """Moves the oldest group of one row from the ring to pages, in all layers."""
        start = self.quantized[row]
        kept = self.outlier_pos.shape[3]

        def of_row(x: jax.Array) -> jax.Array:
            return lax.dynamic_index_in_dim(x, row, 1, keepdims=False)

        def put(x: jax.Array, new: jax.Array) -> jax.Array:
            return lax.dynamic_update_slice(x, new[:, None], (0, row, *[0] * (x.ndim - 2)))

        exact_k, exact_v = of_row(self.exact_k), of_row(self.exact_v)
        slots = kept + (start + jnp.arange(self.config.group)) % self.ring
        k, v = (jnp.take(x, slots, axis=-2) for x in (exact_k, exact_v))
        outliers = Outliers(
            exact_k[..., :kept, :],
            exact_v[..., :kept, :],
            of_row(self.outlier_pos),
            of_row(self.score),
            of_row(self.frozen),
        )
        active = jnp.ones(outliers.frozen.shape, bool)
        outliers, tiles = _take_group(outliers, k, v, start, active, of_row(self.mode), self.config, self.spec)
        pages_LK = lax.dynamic_index_in_dim(of_row(self.table), start // self.config.group, 2, keepdims=False)
        return replace(
            self,
            pages=jax.tree.map(lambda x, new: x.at[pages_LK].set(new), self.pages, tiles),
            exact_k=put(self.exact_k, outliers.k),
            exact_v=put(self.exact_v, outliers.v),
            outlier_pos=put(self.outlier_pos, outliers.pos),
            score=put(self.score, outliers.score),
            frozen=put(self.frozen, outliers.frozen),
            quantized=self.quantized.at[row].add(self.config.group),
        )


def _check_lengths(lengths_B: np.ndarray, tokens: int, plan: PagePlan, config: CacheConfig) -> None:
    longest, groups = lengths_B.max(), plan.table.shape[-1]
    if longest > tokens:
        raise ShapeError(f"a row has {longest} tokens, but keys and values only {tokens}; want as many at least.")
    if quantized_tokens(longest, config) > groups * config.group:
        raise ShapeError(
            f"a row has {longest} tokens, but the tables hold {groups} groups of {config.group}, for "
            f"{(groups + 1) * config.group + config.residual - 1} tokens at most; plan pages for the longest row."
        )


def flushes_per_step(batch: int, config: CacheConfig) -> int:
    """Rows flushed at one step: as many as become ready on average."""
    return -(-batch // config.group)


def ring_slots(batch: int, config: CacheConfig) -> int:
    """Slots of the ring: a full row, and what comes in while other rows are flushed before it."""
    return config.residual + config.group - 1 + -(-batch // flushes_per_step(batch, config))


def ring_positions(newest_B: jax.Array, slots: int) -> jax.Array:
    """Position `[B, slots]` that each slot holds when `newest_B` was written last; negative before its first."""
    return newest_B[:, None] - (newest_B[:, None] - jnp.arange(slots)[None]) % slots


@partial(jax.jit, static_argnames=("pages", "config", "spec"))
def _from_prefill(
    kv: tuple[jax.Array, jax.Array],
    lengths: jax.Array,
    mode: jax.Array,
    table: jax.Array,
    pages: int,
    config: CacheConfig,
    spec: AttentionSpec,
) -> QuantizedCache:
    pool = empty_pages(pages, kv[0].shape[-1], config)
    return fill_rows(pool, kv, lengths, mode, table, ring_slots(lengths.shape[0], config), config, spec)


def fill_rows(
    pool: Pages,
    kv: tuple[jax.Array, jax.Array],
    lengths: jax.Array,
    mode: jax.Array,
    table: jax.Array,
    ring: int,
    config: CacheConfig,
    spec: AttentionSpec,
) -> QuantizedCache:
    """Packs prompts into pages of `pool`; groups whose place in the table is negative are stored nowhere."""
    L, B, _, K, H = kv[0].shape
    pages = pool.k_codes.shape[0]
    k, v = hadamard(kv[0]) if config.rotates else kv[0], kv[1]
    lengths = lengths.astype(jnp.int32)
    quantized = quantized_tokens(lengths, config)
    outliers = Outliers.empty((L, B, K), config.outliers, config.outlier_store, H, k.dtype)

    def take(g: jax.Array, carry: tuple[Pages, Outliers]) -> tuple[Pages, Outliers]:
        pool, outliers = carry
        start = g * config.group
        group_k, group_v = (lax.dynamic_slice_in_dim(x, start, config.group, axis=2).swapaxes(2, 3) for x in (k, v))
        active = jnp.broadcast_to((start < quantized)[:, None], (L, B, K))
        outliers, tiles = _take_group(outliers, group_k, group_v, start, active, mode, config, spec)
        page = lax.dynamic_index_in_dim(table, g, 3, keepdims=False)
        page = jnp.where(active & (page >= 0), page, pages)  # out of bounds: dropped
        return jax.tree.map(lambda x, new: x.at[page].set(new, mode="drop"), pool, tiles), outliers

    state = (pool, outliers)
    if k.shape[2] >= config.group:
        state = lax.fori_loop(0, quantized.max() // config.group, take, state)
    pool, outliers = state
    position_BF = jnp.maximum(ring_positions(lengths - 1, ring), 0)

    def in_ring(x: jax.Array) -> jax.Array:
        return jnp.take_along_axis(x, position_BF[None, :, :, None, None], axis=2).swapaxes(2, 3)

    return QuantizedCache(
        pool,
        jnp.maximum(table, 0),
        jnp.concatenate([outliers.k, in_ring(k)], 3),
        jnp.concatenate([outliers.v, in_ring(v)], 3),
        outliers.pos,
        outliers.score,
        outliers.frozen,
        mode.astype(jnp.int8),
        quantized,
        lengths,
        config,
        spec,
    )


def _take_group(
    outliers: Outliers,
    k: jax.Array,
    v: jax.Array,
    start: jax.Array,
    active: jax.Array,
    mode: jax.Array,
    config: CacheConfig,
    spec: AttentionSpec,
) -> tuple[Outliers, Pages]:
    """Traces outliers of the group `[L, ..., K, G, H]` that begins at position `start`, and packs it."""
    end = start + config.group
    alive = visible_tokens((mode == HeadMode.SPARSE)[..., None], end, outliers.pos, spec)
    traced = jnp.arange(k.shape[0]) >= config.untraced_layers
    score = token_scores(k, stat=config.outlier_stat, scope=config.outlier_scope)
    pos = jnp.broadcast_to(start + jnp.arange(config.group), score.shape)
    outliers, holes = compete(
        forget(outliers, alive | ~active[..., None]),
        k,
        v,
        score,
        pos,
        active & traced.reshape(-1, *[1] * (active.ndim - 1)),
    )
    return outliers, quantize_tokens(k, v, holes, config)
