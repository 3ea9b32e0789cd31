"""Attention over whole sequences as a table of calls; every implementation is held to the dense reference.

A row names an op, a case, a dtype and what else the call takes. `wanted` computes the reference of a row once in a
session, outputs and gradients, and `check` compares an implementation with it. Places of padding hold zeros for the
reference and NaN for the implementation, in operands and cotangents alike: what padding holds must not matter.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import cache

import jax
import jax.numpy as jnp
import mosaic_gpu_interpreter
import numpy as np
import pytest
import tpu_tools
import triton_interpreter
from attention_cases import Case, Inputs, assert_close, make_inputs, random_block_masks
from typed_ops import dual_attention, hybrid_attention, routed_attention

MASKS = ("block_mask", "full_block_mask")
TOLERANCE = {"float32": 1e-5, "bfloat16": 2e-2, "float16": 3e-3}


@dataclass(frozen=True)
class Row:
    op: str
    """hybrid, dual or routed."""
    case: Case
    masks: tuple[str, ...] = ()
    """Random block masks that the call takes."""
    lse: bool = False
    """Whether the log-sum-exp is returned, and takes a cotangent."""
    dtype: str = "float32"
    mode: int | None = None
    """The mode of all heads; None for random ones."""
    gradients: bool = True
    tpu_tile: int = 2
    """Key blocks of a tile of the TPU kernels, at most."""
    quick: str = field(default="", compare=False)
    """Implementations that every test run checks."""
    slow: str = field(default="", compare=False)
    """Implementations that are checked with `-m slow`."""

    @property
    def name(self) -> str:
        words = [self.case.name, *self.masks, *["lse"] * self.lse, *[self.dtype] * (self.dtype != "float32")]
        words += [f"mode {self.mode}"] * (self.mode is not None) + [f"tile {self.tpu_tile}"] * (self.tpu_tile != 2)
        return ", ".join(words)


def cells(rows: Iterable[Row]) -> list:
    """A parameter (row, implementation) for each test; those of one row follow each other and share its reference."""
    return [
        pytest.param(row, impl, id=f"{row.name}, {impl}", marks=[pytest.mark.slow] if impl in row.slow.split() else [])
        for row in rows
        for impl in (row.quick + " " + row.slow).split()
    ]


def inputs_of(row: Row) -> tuple[Inputs, dict[str, jax.Array]]:
    """The operands of a row, with zeros in places of padding, and its masks."""
    inputs = make_inputs(row.case, jnp.dtype(row.dtype))
    if row.mode is not None:
        inputs = replace(inputs, mode=jnp.full_like(inputs.mode, row.mode))
    masks = dict(zip(MASKS, random_block_masks(row.case), strict=True))
    return padded_with(inputs, 0.0), {name: masks[name] for name in row.masks}


def padded_with(inputs: Inputs, value: float) -> Inputs:
    """The operands with this value in the places of padding."""
    exists = np.ones(inputs.k.shape[:2], bool)
    if inputs.options["lengths"] is not None:
        exists &= np.arange(exists.shape[1]) < np.asarray(inputs.options["lengths"])[:, None]
    if inputs.options["segment_ids"] is not None:
        exists &= np.asarray(inputs.options["segment_ids"]) > 0

    def fill(x: jax.Array) -> jax.Array:
        return jnp.asarray(np.where(exists[:, -x.shape[1] :, None, None], x, np.asarray(value, x.dtype)))

    return replace(inputs, **{name: fill(getattr(inputs, name)) for name in ("q", "k", "v", "d_out")})


def call(op: str, inputs: Inputs, q: jax.Array, k: jax.Array, v: jax.Array, z: jax.Array, **options) -> tuple:
    """All outputs of an op on these operands, with the modes and options of `inputs`."""
    options = inputs.options | options
    if op == "hybrid":
        out = hybrid_attention(q, k, v, inputs.mode, **options)
    elif op == "routed":
        out = routed_attention(q, k, v, z, **options)
    else:
        out = dual_attention(q, k, v, **options)
    return tuple(out) if isinstance(out, tuple) else (out,)


def program(row: Row, impl: str) -> Callable[..., dict[str, jax.Array]]:
    """The outputs and gradients of a row by name, as a function of (q, k, v, z, cotangent of the output)."""
    inputs, masks = inputs_of(row)
    options = masks | ({"return_lse": True} if row.lse else {}) | {"impl": impl}
    names = ("full", "sparse") if row.op == "dual" else ("out", "lse")

    def run(q, k, v, z, d_out):
        outs, pull = jax.vjp(lambda *operands: call(row.op, inputs, *operands, **options), q, k, v, z)
        results = dict(zip(names, outs, strict=False))
        if not row.gradients:
            return results
        cotangents = [d_out]
        if row.op == "dual":
            cotangents.append(0.5 * d_out)
        if row.lse:
            d_lse = jnp.cos(jnp.arange(outs[1].size, dtype=jnp.float32)).reshape(outs[1].shape)
            # A query that sees nothing passes no gradient on, whatever its cotangent holds.
            unseen = 0.0 if impl == "reference" else jnp.nan
            cotangents.append(jnp.where(jnp.isneginf(outs[1]), unseen, d_lse))
        gradients = dict(zip(("dq", "dk", "dv", "dz"), pull(tuple(cotangents)), strict=True))
        return results | {name: x for name, x in gradients.items() if name != "dz" or row.op == "routed"}

    return run


def operands(inputs: Inputs) -> tuple[jax.Array, ...]:
    return inputs.q, inputs.k, inputs.v, inputs.z, inputs.d_out


@cache
def compiled(row: Row, impl: str) -> Callable[..., dict[str, jax.Array]]:
    """The program of a row; Mosaic's interpreter takes no compiled programs, and TPU programs run once only."""
    return {"mosaic_gpu": lambda run: run, "tpu": tpu_tools.quick_jit}.get(impl, jax.jit)(program(row, impl))


@cache
def wanted(row: Row) -> dict[str, np.ndarray]:
    """What the reference gives."""
    return computed(row, "reference", 0.0)


def computed(row: Row, impl: str, value: float = np.nan) -> dict[str, np.ndarray]:
    """What an implementation gives where places of padding hold this value; in an interpreter if it needs a device."""
    place, run = nullcontext(), compiled(row, impl)
    if impl == "tpu":
        place = tpu_tools.interpreted(row.tpu_tile)
    elif impl == "triton":
        place = triton_interpreter.interpreted(pytest.MonkeyPatch())
    elif impl == "mosaic_gpu":
        place = mosaic_gpu_interpreter.interpreted(pytest.MonkeyPatch())
    if row.tpu_tile != Row.tpu_tile:
        jax.clear_caches()  # a program for these shapes may be there, with other tiles
    with place:
        results = run(*operands(padded_with(inputs_of(row)[0], value)))
        return jax.tree.map(np.asarray, jax.block_until_ready(results))


def check(row: Row, impl: str) -> None:
    got, reference = computed(row, impl), wanted(row)
    assert got.keys() == reference.keys()
    for name, value in reference.items():
        assert got[name].dtype == value.dtype, name
        tolerance = TOLERANCE[row.dtype]
        if name == "lse":
            np.testing.assert_array_equal(np.isneginf(got[name]), np.isneginf(value))
            assert value.dtype == np.float32
            tolerance = min(tolerance, 2e-3)
        assert_close(*(np.where(np.isneginf(x), 0, x) for x in (got[name], value)), tolerance, name)
