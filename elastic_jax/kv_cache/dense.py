"""The plain cache: every key and value of every head in the model dtype, one slot per position."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import jax
import jax.numpy as jnp

from elastic_jax.routing import HeadMode
from pallas_kernels.schedule import AttentionSpec, visible_tokens

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
        rows, offset = jnp.arange(B)[:, None], jnp.arange(T)
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

        What lies beyond a row's `counts_B` tokens is not written, and what is computed there means nothing.
        """
        B, T, N, H = q_BTNH.shape
        K, S = self.k.shape[2:4]
        q = q_BTNH.reshape(B, T, K, N // K, H)
        scores = jnp.einsum("btkgh,bksh->bkgts", q, self.k[layer], preferred_element_type=jnp.float32) * self.spec.scale
        sparse_BK111 = (self.mode[layer] == HeadMode.SPARSE)[:, :, None, None, None]
        position_B11T1 = (self.lengths[:, None] + jnp.arange(T))[:, None, None, :, None]
        visible = visible_tokens(sparse_BK111, position_B11T1, jnp.arange(S), self.spec)
        probabilities = jax.nn.softmax(jnp.where(visible, scores, NEG_INF), axis=-1)
        out = jnp.einsum("bkgts,bksh->btkgh", probabilities.astype(self.v.dtype), self.v[layer])
        return out.reshape(B, T, N, H)
