"""Calls outside of `jax.jit` as users write them, and what many of them leave behind in one process.

`python FILE NAME COUNT [DEVICES]` prints as JSON: seconds of the first and second call, seconds of a later one, and by
how much memory maps and resident bytes grew after the second. With several devices a mesh of them is set.
"""

from __future__ import annotations

import contextlib
import gc
import json
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from decode_cases import SMALL_GROUPS, make_decode_inputs
from tiny import random_ids, tiny_model, tiny_reward_model

import pallas_kernels
from elastic_jax.sharding import MeshConfig, make_mesh
from pallas_kernels import hybrid_attention

Call = Callable[[], object]


def maps() -> int:
    """Memory maps of this process."""
    return Path("/proc/self/maps").read_bytes().count(b"\n")


def resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * 4096


def normal(*shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(0).standard_normal(shape), jnp.float32)


def _model() -> Call:
    model = tiny_model()
    return lambda: model(random_ids((2, 48))).logits


def _packed_model() -> Call:
    model = tiny_model()
    segment_ids = jnp.repeat(jnp.array([[1, 2, 0]] * 2), 16, 1)
    return lambda: model(random_ids((2, 48)), segment_ids=segment_ids).logits


def _reward_model() -> Call:
    model = tiny_reward_model()
    return lambda: model(random_ids((2, 48)), routing="full")


def _gradient() -> Call:
    return lambda: jax.grad(lambda q: hybrid_attention(q, K, K, MODE, **SPARSE).sum())(Q)


Q, K = normal(2, 64, 4, 16), normal(2, 64, 2, 16)
MODE, Z = jnp.array([[0, 1]] * 2), jnp.array([[1.0, 0.0]] * 2)
SPARSE = {"local_blocks": 1, "block_size": 16}
CODES = jnp.asarray(np.random.default_rng(0).integers(0, 4, (2, 64, 16)), jnp.uint8)
WORDS = jnp.ones((2, 4, 16), jnp.uint32)
SCALE = normal(2, 16)


def _decode(impl: str) -> Call:
    q, view, position, mode = make_decode_inputs(SMALL_GROUPS[2])
    return partial(pallas_kernels.decode_attention, q, view, position, mode, **SMALL_GROUPS[2].options(), impl=impl)


def _ops(impl: str) -> dict[str, Callable[[], Call]]:
    """Every public op of `pallas_kernels` that computes, in one implementation."""
    ops = {
        "hybrid_attention": (Q, K, K, MODE, SPARSE),
        "dual_attention": (Q, K, K, SPARSE),
        "routed_attention": (Q, K, K, Z, SPARSE),
        "select_blocks": (Q, K, {"block_size": 16}),
        "quantize_group": (Q, {"axis": 1, "bits": 2}),
        "dequantize_group": (CODES, SCALE, SCALE, {"axis": 1}),
        "pack": (CODES, {"bits": 2}),
        "unpack": (WORDS, {"bits": 2}),
    }
    calls = {
        f"{name}, {impl}": lambda name=name, given=given: partial(
            getattr(pallas_kernels, name), *given[:-1], **given[-1], impl=impl
        )
        for name, given in ops.items()
    }
    return calls | {f"decode_attention, {impl}": partial(_decode, impl)}


CALLS: dict[str, Callable[[], Call]] = {
    "model": _model,
    "model, packed": _packed_model,
    "reward model": _reward_model,
    "hybrid_attention, gradient": _gradient,
    **_ops("reference"),
    **_ops("xla"),
    "fold_query_heads": lambda: partial(pallas_kernels.fold_query_heads, Q, 2),
    "unfold_query_heads": lambda: partial(pallas_kernels.unfold_query_heads, normal(2, 2, 8, 16), 4),
}
"""By name: makes what the call needs, a model of its own where it needs one, and returns the call."""


def growth(name: str, count: int, devices: int) -> dict[str, float]:
    with jax.set_mesh(make_mesh(MeshConfig(data=devices))) if devices > 1 else contextlib.nullcontext():
        call = CALLS[name]()
        seconds = []

        def timed() -> None:
            start = time.perf_counter()
            jax.block_until_ready(call())
            seconds.append(time.perf_counter() - start)

        timed()
        timed()
        gc.collect()
        maps_before, bytes_before = maps(), resident_bytes()
        for _ in range(count - 2):
            timed()
        gc.collect()
        return {
            "first": seconds[0],
            "second": seconds[1],
            "later": float(np.median(seconds[2:])),
            "maps": maps() - maps_before,
            "megabytes": (resident_bytes() - bytes_before) / 2**20,
        }


if __name__ == "__main__":
    print(json.dumps(growth(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))))
