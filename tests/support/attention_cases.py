"""Shapes and layouts that every implementation of an attention op must get right."""

from __future__ import annotations

from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
import numpy as np


@dataclass(frozen=True)
class Case:
    name: str
    keys: int
    kv_heads: int = 1
    groups: int = 1
    head_dim: int = 16
    batch: int = 1
    queries: int | None = None
    """Last positions of the keys; None for all."""
    block: int = 16
    sink: int = 1
    local: int = 2
    window: int | None = None
    lengths: tuple[int, ...] | None = None
    segments: tuple[tuple[int, ...], ...] | None = None
    """Tokens of each segment, by row."""

    def segment_ids(self) -> jax.Array | None:
        if self.segments is None:
            return None
        ids = np.zeros((self.batch, self.keys), np.int32)
        for row, tokens in zip(ids, self.segments, strict=True):
            at = 0
            for index, n in enumerate(tokens):
                row[at : at + n] = index + 1
                at += -(-n // self.block) * self.block
        return jnp.asarray(ids)

    def options(self) -> dict:
        return {
            "sink_blocks": self.sink,
            "local_blocks": self.local,
            "block_size": self.block,
            "window": self.window,
            "lengths": None if self.lengths is None else jnp.asarray(self.lengths),
            "segment_ids": self.segment_ids(),
        }


@dataclass(frozen=True)
class Inputs:
    q: jax.Array
    k: jax.Array
    v: jax.Array
    mode: jax.Array
    d_out: jax.Array
    """Cotangent of the output."""
    options: dict = field(hash=False)

    @property
    def z(self) -> jax.Array:
        return (self.mode == 0).astype(jnp.float32)


PUBLISHED = {"block": 128, "local": 16, "head_dim": 64}

CASES = [
    Case("one token", 1, groups=3),
    Case("above a block", 17, groups=8),
    Case("many blocks", 150, kv_heads=2, groups=3, batch=2),
    Case("padded", 150, kv_heads=2, groups=4, batch=4, lengths=(150, 37, 1, 0)),
    Case("last queries, short", 40, queries=25, kv_heads=2, local=1, lengths=(37,)),
    Case("last queries", 150, queries=41, kv_heads=2, groups=3, batch=2, lengths=(150, 140)),
    Case("packed", 160, kv_heads=3, groups=3, batch=2, segments=((50, 70), (100, 1, 16))),
    Case("window in packed rows", 160, kv_heads=3, batch=2, window=20, sink=2, segments=((50, 70), (100, 1, 16))),
    Case("window in packed rows, short", 80, kv_heads=2, window=20, segments=((20, 40),)),
    Case("published, 127", 127, groups=3, kv_heads=2, batch=2, lengths=(127, 50), **PUBLISHED),
    Case("wide local", 330, kv_heads=2, groups=3, batch=2, sink=2, local=12, lengths=(330, 290)),
    Case("one block", 16, groups=4),
    Case("below a block", 15, groups=3),
    Case("last query", 33, queries=1, kv_heads=2, groups=3),
    Case("no sink", 100, kv_heads=2, sink=0, local=1),
    Case("two sinks, wide local", 130, kv_heads=3, sink=2, local=5),
    Case("window", 150, kv_heads=2, groups=3, batch=2, window=37, lengths=(150, 90)),
    *(Case(f"published, {n}", n, groups=3, kv_heads=2, batch=2, **PUBLISHED) for n in (1, 128, 129, 700)),
    Case("published, 2176", 2176, groups=4, kv_heads=2, **PUBLISHED),
    Case("published, 2177", 2177, groups=1, kv_heads=2, **PUBLISHED),
    Case("published, 4096", 4096, groups=3, kv_heads=2, **PUBLISHED),
    Case("published, G = 8", 2500, groups=8, kv_heads=1, batch=2, lengths=(2500, 2200), **PUBLISHED),
    Case("published, packed", 4096, groups=3, kv_heads=2, segments=((2300, 700, 900),), **PUBLISHED),
]

NAMED = {case.name: case for case in CASES}
SHORT = NAMED["last queries, short"]


def make_inputs(case: Case, dtype: jnp.dtype = jnp.float32, seed: int = 0) -> Inputs:
    """Random operands, and random modes that differ between heads, rows and segments."""
    rng = np.random.default_rng(seed)
    queries = case.keys if case.queries is None else case.queries

    def normal(tokens: int, heads: int) -> jax.Array:
        return jnp.asarray(rng.normal(size=(case.batch, tokens, heads, case.head_dim)), dtype)

    middle = () if case.segments is None else (max(len(s) for s in case.segments),)
    mode = jnp.asarray(rng.integers(0, 2, size=(case.batch, *middle, case.kv_heads)), jnp.int8)
    heads = case.kv_heads * case.groups
    return Inputs(
        normal(queries, heads),
        normal(case.keys, case.kv_heads),
        normal(case.keys, case.kv_heads),
        mode,
        normal(queries, heads),
        case.options(),
    )


def random_block_masks(case: Case, density: float = 0.4, seed: int = 0) -> tuple[jax.Array, jax.Array]:
    """Two masks that differ between query heads; some rows list nothing, some blocks above the diagonal are listed."""
    rng = np.random.default_rng(seed)
    queries = case.keys if case.queries is None else case.queries
    key_blocks = -(-case.keys // case.block)
    query_blocks = key_blocks - (case.keys - queries) // case.block
    shape = (2, case.batch, case.kv_heads * case.groups, query_blocks, key_blocks)
    first, second = jnp.asarray(rng.random(shape) < density)
    return first, second


def assert_close(got: jax.Array, wanted: jax.Array, tolerance: float, what: str = "") -> None:
    """Largest error relative to the largest value, or to 1 where all are smaller."""
    got, wanted = np.asarray(got, np.float32), np.asarray(wanted, np.float32)
    assert got.shape == wanted.shape
    error = np.abs(got - wanted).max() / max(1.0, np.abs(wanted).max())
    assert error <= tolerance, f"{what} error {error:.2e} > {tolerance:.0e}"
