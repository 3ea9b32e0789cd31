"""The plain cache: every key and value of every head in the model dtype, one slot per position."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import partial

import jax
import jax.numpy as jnp

from elastic_jax.config import HeadMode
from pallas_kernels import fold_query_heads, unfold_query_heads
from pallas_kernels.schedule import AttentionSpec, query_positions, visible_tokens

NEG_INF = -1e30


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class DenseCache:
    """Rotated keys and values `[L, B, K, S, H]`; row b holds `lengths[b]` tokens, one per position."""

    k: jax.Array
    v: jax.Array
    mode: jax.Array
    """int8 `[L, B, K]`: what each head attends to."""
    lengths: jax.Array
    spec: AttentionSpec = field(metadata={"static": True})

    @property
    def nbytes(self) -> int:
        return self.k.nbytes + self.v.nbytes

    @classmethod
    def blank(
        cls, shape: tuple[int, int, int, int], *, capacity: int, dtype: jnp.dtype, spec: AttentionSpec
    ) -> DenseCache:
        """Rows without tokens, of `capacity` positions; `shape` is layers, rows, KV heads, head dimension."""
        L, B, K, H = shape
        kv = (jnp.zeros((L, B, 0, K, H), dtype),) * 2
        return cls.from_prefill(kv, jnp.zeros(B), jnp.zeros((L, B, K), jnp.int8), capacity, spec)

    @classmethod
    def from_prefill(
        cls,
        kv: tuple[jax.Array, jax.Array],
        lengths: jax.Array,
        mode: jax.Array,
        capacity: int,
        spec: AttentionSpec,
    ) -> DenseCache:
        """From keys and values `[L, B, T, K, H]` of right-padded rows, with room for `capacity` tokens."""

        def store(x: jax.Array) -> jax.Array:
            x = x[:, :, :capacity].swapaxes(2, 3)
            return jnp.pad(x, ((0, 0), (0, 0), (0, 0), (0, capacity - x.shape[3]), (0, 0)))

        return cls(store(kv[0]), store(kv[1]), mode, lengths.astype(jnp.int32), spec)

    def write(
        self, layer: jax.Array, k_BTKH: jax.Array, v_BTKH: jax.Array, counts_B: jax.Array | None = None
    ) -> DenseCache:
        """Puts the next tokens of every row, the first `counts_B` of the T, at its free positions; counts none."""
        B, T = k_BTKH.shape[:2]
        rows, offset = jnp.arange(B)[:, None], jnp.arange(T)[None]
        position = self.lengths[:, None] + offset
        if counts_B is not None:
            position = jnp.where(offset < counts_B[:, None], position, self.k.shape[3])  # out of bounds: dropped
        return replace(
            self,
            k=self.k.at[layer, rows, :, position].set(k_BTKH, mode="drop"),
            v=self.v.at[layer, rows, :, position].set(v_BTKH, mode="drop"),
        )

    def advance(self) -> DenseCache:
        return replace(self, lengths=self.lengths + 1)

    def attend(self, layer: jax.Array, q_BTNH: jax.Array, counts_B: jax.Array | None = None) -> jax.Array:
        """Attention of the tokens just written over the past that each head's mode allows: `[B, T, N, H]`.

        Results after the first `counts_B` tokens of a row have no meaning: those tokens are not in the cache.
        """
        T, N = q_BTNH.shape[1:3]
        K, S = self.k.shape[2:4]
        sparse_BK11 = (self.mode[layer] == HeadMode.SPARSE)[:, :, None, None]
        position_B1R1 = jnp.tile(query_positions(self.lengths, T), N // K)[:, None, :, None]
        visible_BKRS = visible_tokens(sparse_BK11, position_B1R1, jnp.arange(S)[None, None, None], self.spec)

        def over(dtype: jnp.dtype, q_BKRH: jax.Array, k_BKSH: jax.Array, v_BKSH: jax.Array) -> jax.Array:
            q_BKRH, k_BKSH, v_BKSH = (x.astype(dtype) for x in (q_BKRH, k_BKSH, v_BKSH))
            scores = jnp.einsum("bkrh,bksh->bkrs", q_BKRH, k_BKSH, preferred_element_type=jnp.float32)
            scores = jnp.where(visible_BKRS, scores * self.spec.scale, NEG_INF)
            weights = jax.nn.softmax(scores, axis=-1).astype(dtype)
            return jnp.einsum("bkrs,bksh->bkrh", weights, v_BKSH).astype(q_BTNH.dtype)

        # CPUs multiply 16-bit matrices of a few rows slower than they widen them.
        out_BKRH = jax.lax.platform_dependent(
            fold_query_heads(q_BTNH, K),
            self.k[layer],
            self.v[layer],
            cpu=partial(over, jnp.dtype(jnp.float32)),
            default=partial(over, self.v.dtype),
        )
        return unfold_query_heads(out_BKRH, T)
