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

    def write(self, layer: jax.Array, k_B1KH: jax.Array, v_B1KH: jax.Array) -> DenseCache:
        """Puts one new token of every row at its next free position; `advance` then counts it."""
        rows = jnp.arange(self.lengths.shape[0])
        return replace(
            self,
            k=self.k.at[layer, rows, :, self.lengths].set(k_B1KH[:, 0]),
            v=self.v.at[layer, rows, :, self.lengths].set(v_B1KH[:, 0]),
        )

    def advance(self) -> DenseCache:
        return replace(self, lengths=self.lengths + 1)

    def attend(self, layer: jax.Array, q_B1NH: jax.Array) -> jax.Array:
        """Attention of the token just written over the past that its head's mode allows: `[B, 1, N, H]`."""
        B, _, N, H = q_B1NH.shape
        K, S = self.k.shape[2:4]
        q = q_B1NH.reshape(B, K, N // K, H)
        scores = jnp.einsum("bkgh,bksh->bkgs", q, self.k[layer], preferred_element_type=jnp.float32) * self.spec.scale
        sparse_BK11 = (self.mode[layer] == HeadMode.SPARSE)[:, :, None, None]
        visible = visible_tokens(sparse_BK11, self.lengths[:, None, None, None], jnp.arange(S), self.spec)
        probabilities = jax.nn.softmax(jnp.where(visible, scores, NEG_INF), axis=-1)
        out = jnp.einsum("bkgs,bksh->bkgh", probabilities.astype(self.v.dtype), self.v[layer])
        return out.reshape(B, 1, N, H)
