"""The plain cache: every key and value of every head in the model dtype, one slot per position."""

from __future__ import annotations

from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp

from elastic_jax.config import ModelConfig
from elastic_jax.routing import HeadMode

NEG_INF = -1e30


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class DenseCache:
    """Rotated keys and values `[L, B, K, S, H]`; row b holds `lengths[b]` tokens, one per position."""

    k: jax.Array
    v: jax.Array
    lengths: jax.Array

    @property
    def nbytes(self) -> int:
        return self.k.nbytes + self.v.nbytes

    @classmethod
    def from_prefill(cls, kv: tuple[jax.Array, jax.Array], lengths: jax.Array, capacity: int) -> DenseCache:
        """From keys and values `[L, B, T, K, H]` of right-padded rows, with room for `capacity` tokens."""

        def store(x: jax.Array) -> jax.Array:
            x = x[:, :, :capacity].swapaxes(2, 3)
            return jnp.pad(x, ((0, 0), (0, 0), (0, 0), (0, capacity - x.shape[3]), (0, 0)))

        return cls(store(kv[0]), store(kv[1]), lengths.astype(jnp.int32))

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

    def attend(self, layer: jax.Array, q_B1NH: jax.Array, mode_BK: jax.Array, config: ModelConfig) -> jax.Array:
        """Attention of the token just written over the past that its head's mode allows: `[B, 1, N, H]`."""
        B, _, N, H = q_B1NH.shape
        K = config.num_kv_heads
        q = q_B1NH.reshape(B, K, N // K, H)
        scores = jnp.einsum("bkgh,bksh->bkgs", q, self.k[layer], preferred_element_type=jnp.float32) * H**-0.5
        visible_BKS = visible_keys(self.lengths, self.k.shape[3], mode_BK, config)
        probabilities = jax.nn.softmax(jnp.where(visible_BKS[:, :, None], scores, NEG_INF), axis=-1)
        out = jnp.einsum("bkgs,bksh->bkgh", probabilities.astype(self.v.dtype), self.v[layer])
        return out.reshape(B, 1, N, H)


def visible_keys(query_position_B: jax.Array, slots: int, mode_BK: jax.Array, config: ModelConfig) -> jax.Array:
    """Which cache slots a query at `query_position_B` may read: bool `[B, K, slots]`, the mask of prefill continued.

    Heads that choose their blocks by content (XA) do so for whole blocks of queries, in prefill; here they read all.
    """
    sparse = config.router
    key, query = jnp.arange(slots)[None], query_position_B[:, None]
    causal = key <= query
    if config.sliding_window is not None:
        causal &= query - key < config.sliding_window
    key_block, query_block = key // sparse.block_size, query // sparse.block_size
    if sparse.pattern == "fa-xa":
        return jnp.broadcast_to(causal[:, None], (*mode_BK.shape, slots))
    streaming = causal & ((key_block < sparse.sink_blocks) | (key_block > query_block - sparse.local_blocks))
    return jnp.where(mode_BK[:, :, None] == HeadMode.FULL, causal[:, None], streaming[:, None])
