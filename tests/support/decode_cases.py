"""Caches and queries that every implementation of decode attention must get right."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from attention_cases import assert_close

from pallas_kernels import CacheView, Pages, decode_attention, pack, quantize_group


@dataclass(frozen=True)
class DecodeCase:
    name: str
    lengths: tuple[int, ...]
    """Tokens of each row, the queries included."""
    queries: int = 1
    kv_heads: int = 2
    groups: int = 2
    """Query heads of a KV head."""
    head_dim: int = 64
    bits: int = 2
    group: int = 128
    channels: int | None = None
    """Channels of a value group; None for as many as the cache takes, at most `group`."""
    outliers: int = 3
    norm: bool = False
    local: int = 2
    block: int = 128
    sink: int = 1
    window: int | None = None
    modes: tuple[int, ...] = (0, 1)
    """Modes of the heads, row after row, repeated."""
    pages: int = 1
    """Places of a head's table, if its tokens need no more: one shape for rows of any length."""
    slow: bool = False

    def options(self) -> dict:
        return {
            "sink_blocks": self.sink,
            "local_blocks": self.local,
            "block_size": self.block,
            "window": self.window,
        }


DECODE_CASES = [
    DecodeCase("one token in all", (1,), kv_heads=1, slow=True),
    DecodeCase("nothing quantised", (100, 3), bits=4, slow=True),
    DecodeCase("rows of different lengths", (700, 290), groups=3),
    DecodeCase("8 queries, 4 bits, norms", (600, 9), queries=8, bits=4, norm=True),
    DecodeCase(
        "8 bits, window, two sinks",
        (900, 140),
        queries=2,
        groups=1,
        bits=8,
        window=300,
        sink=2,
        modes=(1, 0),
        slow=True,
    ),
    DecodeCase("blocks across groups", (800,), bits=2, block=96, local=3, modes=(1,), slow=True),
    DecodeCase("sinks meet local blocks", (500,), local=9, modes=(1,), slow=True),
    DecodeCase("many query heads", (420, 300), groups=8, queries=4, slow=True),
    DecodeCase("head dim 96", (420,), head_dim=96, norm=True, slow=True),
    DecodeCase("head dim 128", (420,), head_dim=128, slow=True),
    DecodeCase("head dim 256", (420,), head_dim=256, groups=4, slow=True),
    DecodeCase("many splits", (3000, 1100), kv_heads=1, slow=True),
]
SMALL_GROUPS = [
    DecodeCase("group 64", (300,), group=64, block=64, slow=True),
    DecodeCase("group 32", (200,), group=32, block=48, bits=4, slow=True),
    DecodeCase("group 32, 2 bits", (200,), group=32, block=32),
]
"""Groups that fill no TPU register."""


@partial(jax.jit, static_argnames=("bits", "channels", "metadata_dtype"))
def quantize(k, v, holes, *, norm=None, bits: int = 2, channels: int, metadata_dtype=jnp.float16) -> Pages:
    """Pages of `[..., G, H]`, with metadata in the engine's dtype if no other is asked for."""
    divided = k if norm is None else k / norm[..., None].astype(jnp.float32)
    k_codes, k_scale, k_zero = quantize_group(
        divided, axis=-2, bits=bits, valid=~holes[..., None], metadata_dtype=metadata_dtype
    )
    by_channels = v.reshape(*v.shape[:-1], -1, channels)
    v_codes, v_scale, v_zero = quantize_group(by_channels, axis=-1, bits=bits, metadata_dtype=metadata_dtype)
    k_codes, v_codes = (pack(x.reshape(v.shape), bits=bits) for x in (k_codes, v_codes))
    return Pages(
        k_codes, k_scale, k_zero, norm, v_codes, v_scale, v_zero, pack(holes[..., None].astype(jnp.uint8), bits=1)
    )


def make_decode_inputs(case: DecodeCase, dtype=jnp.float32, seed: int = 0):
    """(queries, view, positions, modes): pages in random order in a pool twice as large, whose other pages are NaN.

    The exact tokens are outliers at random positions, which are holes in their groups, and all that is not quantised.
    Slots without a token hold something large.
    """
    rng = np.random.default_rng(seed)
    B, K, G, H = len(case.lengths), case.kv_heads, case.group, case.head_dim
    quantized = np.array([(n - case.queries) // G * G for n in case.lengths])
    J = max(case.pages, int(quantized.max()) // G)
    k, v = (np.array(jnp.asarray(x, dtype), np.float32) for x in rng.standard_normal((2, B, K, J * G, H), np.float32))
    new_k, new_v = rng.standard_normal((2, B, K, G + case.queries, H), np.float32)

    pos = np.full((B, K, case.outliers + G + case.queries), -1)
    holes = np.zeros((B, K, J * G), bool)
    exact_k, exact_v = (np.full((*pos.shape, H), 100.0, np.float32) for _ in range(2))
    for b, n in enumerate(case.lengths):
        waiting = n - quantized[b]
        tail = slice(case.outliers, case.outliers + waiting)
        pos[b, :, tail] = np.arange(quantized[b], n)
        exact_k[b, :, tail], exact_v[b, :, tail] = new_k[b, :, :waiting], new_v[b, :, :waiting]
        for h in range(K if quantized[b] else 0):
            chosen = rng.permutation(quantized[b])[: case.outliers]
            pos[b, h, : case.outliers], holes[b, h, chosen] = chosen, True
            exact_k[b, h, : case.outliers], exact_v[b, h, : case.outliers] = k[b, h, chosen], v[b, h, chosen]

    def grouped(x: np.ndarray) -> jax.Array:
        return jnp.asarray(x.reshape(B * K * J, G, *x.shape[3:]))

    norm = jnp.asarray(rng.uniform(0.5, 2, (B * K * J, G)), jnp.float16) if case.norm else None
    tiles = quantize(
        grouped(k), grouped(v), grouped(holes), norm=norm, bits=case.bits, channels=case.channels or min(G, H)
    )
    order = rng.permutation(2 * B * K * J)[: B * K * J]

    def pool(x: jax.Array) -> jax.Array:
        blank = jnp.nan if jnp.issubdtype(x.dtype, jnp.floating) else 0
        return jnp.full((2 * B * K * J, *x.shape[1:]), blank, x.dtype).at[order].set(x)

    view = CacheView(
        jax.tree.map(pool, tiles),
        jnp.asarray(order.reshape(B, K, J), jnp.int32),
        jnp.asarray(quantized, jnp.int32),
        jnp.asarray(exact_k, dtype),
        jnp.asarray(exact_v, dtype),
        jnp.asarray(pos, jnp.int32),
    )
    q = jnp.asarray(rng.standard_normal((B, case.queries, K * case.groups, H)), dtype)
    mode = np.resize(case.modes, (B, K))
    return q, view, jnp.asarray(case.lengths, jnp.int32) - case.queries, jnp.asarray(mode, jnp.int32)


def assert_equals_the_definition(
    case: DecodeCase, impl: str, dtype=jnp.float32, tolerance: float = 1e-5, interpreter=nullcontext
) -> None:
    """Compares an implementation with the reference, on inputs in `dtype`; a kernel runs in its interpreter."""
    inputs = make_decode_inputs(case, dtype)
    attend = partial(decode_attention, **case.options())
    with interpreter():
        got = jax.jit(partial(attend, impl=impl))(*inputs).block_until_ready()
    wanted = jax.jit(partial(attend, impl="reference"))(*inputs)
    assert got.dtype == wanted.dtype
    assert_close(got, wanted, tolerance)


def decode_shapes(
    tokens: int,
    *,
    batch: int = 1,
    queries: int = 1,
    kv_heads: int = 8,
    groups: int = 4,
    head_dim: int = 128,
    bits: int = 2,
    group: int = 128,
    slots: int = 195,
    norm: bool = False,
    dtype=jnp.bfloat16,
):
    """Shapes of the arguments of `decode_attention` for a cache of `tokens` in groups, as the engine lays it out."""
    shape = jax.ShapeDtypeStruct
    J, C = tokens // group, head_dim // min(group, head_dim)
    P = batch * kv_heads * J
    codes, channel = shape((P, group * bits // 32, head_dim), jnp.uint32), shape((P, head_dim), jnp.float16)
    token = shape((P, group, C), jnp.float16)
    pages = Pages(
        codes,
        channel,
        channel,
        shape((P, group), jnp.float16) if norm else None,
        codes,
        token,
        token,
        shape((P, group // 32, 1), jnp.uint32),
    )
    exact = shape((batch, kv_heads, slots, head_dim), dtype)
    view = CacheView(
        pages,
        shape((batch, kv_heads, J), jnp.int32),
        shape((batch,), jnp.int32),
        exact,
        exact,
        shape(exact.shape[:3], jnp.int32),
    )
    q = shape((batch, queries, kv_heads * groups, head_dim), dtype)
    return q, view, shape((batch,), jnp.int32), shape((batch, kv_heads), jnp.int32)
