"""Decode attention over a quantised cache on the GPU of this machine: checks, then times; `gpu_check.py` runs it.

Times are those of the attention of Llama-3.1-8B (32 query heads, 8 KV heads of 128) for one new token of every row,
against `jax.nn.dot_product_attention` over a bfloat16 cache of the same tokens and against a plain copy.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from decode_cases import DECODE_CASES, SMALL_GROUPS, decode_shapes, make_decode_inputs

from eval.harness.timing import seconds
from pallas_kernels import CacheView, decode_attention

TOLERANCE = {"float32": 1e-5, "bfloat16": 1e-2, "float16": 2e-3}
COPIED = 2**30
QUERY_HEADS, KV_HEADS, HEAD_DIM = 32, 8, 128


def check_decode() -> list[dict]:
    """Every case of the shared table against the reference."""
    records = []
    for case in [*DECODE_CASES, *SMALL_GROUPS]:
        for dtype, tolerance in TOLERANCE.items():
            inputs = make_decode_inputs(case, jnp.dtype(dtype))
            got, wanted = (
                np.asarray(decode_attention(*inputs, **case.options(), impl=impl), np.float32)
                for impl in ("triton", "reference")
            )
            error = float(np.abs(got - wanted).max() / max(1.0, np.abs(wanted).max()))
            label = f"decode: {case.name}"
            record = {"case": label, "impl": "triton", "dtype": dtype, "errors": [error], "passed": error <= tolerance}
            records.append(record)
            print(json.dumps(record), flush=True)
    return records


def full_cache(tokens: int, **sizes: int) -> tuple[jax.Array, CacheView, jax.Array, jax.Array]:
    """Arguments of `decode_attention` with random codes, every head full, the exact slots the last tokens."""
    rng = np.random.default_rng(0)

    def fill(shape: jax.ShapeDtypeStruct) -> jax.Array:
        if shape.dtype == jnp.uint32:
            return jnp.asarray(rng.integers(0, 2**32, shape.shape, np.uint32))
        return jnp.asarray(rng.random(shape.shape, np.float32), shape.dtype)

    q, view, position, mode = decode_shapes(tokens, **sizes)
    slots, (B, K, J) = view.exact_pos_BKE.shape[2], view.table_BKJ.shape
    view = CacheView(
        jax.tree.map(fill, view.pages)._replace(holes=jnp.zeros(view.pages.holes.shape, jnp.uint32)),
        jnp.arange(B * K * J, dtype=jnp.int32).reshape(B, K, J),
        jnp.full((B,), tokens, jnp.int32),
        fill(view.exact_k_BKEH),
        fill(view.exact_v_BKEH),
        jnp.broadcast_to(tokens + jnp.arange(slots, dtype=jnp.int32), (B, K, slots)),
    )
    return fill(q), view, jnp.full(position.shape, tokens + slots - 1, jnp.int32), jnp.zeros(mode.shape, jnp.int32)


def best_seconds(function: Callable, *operands: object, calls: int) -> float:
    """Seconds of a call in the best of three series, after one that compiles."""
    seconds(function, *operands)
    return min(seconds(function, *operands, calls=calls) for _ in range(3))


def time_decode(rounds: int, tokens: int = 32768) -> list[dict]:
    """Milliseconds, fraction of the bandwidth of a copy, and how many times faster than over bfloat16."""
    copied = jnp.ones((COPIED,), jnp.uint8)
    bandwidth = 2 * COPIED / best_seconds(jax.jit(lambda x: x + jnp.uint8(1)), copied, calls=rounds)
    records = []
    for batch in (1, 8):
        rng = jax.random.key(batch)
        q = jax.random.normal(rng, (batch, 1, QUERY_HEADS, HEAD_DIM), jnp.bfloat16)
        k, v = (jax.random.normal(rng, (batch, tokens, KV_HEADS, HEAD_DIM), q.dtype) for _ in range(2))
        plain: list[float] = []

        def measure(what: str, attend: Callable, read: int | None, *operands: object, batch=batch, plain=plain) -> None:
            record = {"what": what, "batch": batch, "tokens": tokens}
            try:
                spent = best_seconds(jax.jit(attend), *operands, calls=rounds)
            except Exception as error:  # a baseline that this machine cannot run must not end the table
                print(json.dumps(record | {"failed": str(error)[:300]}), flush=True)
                return
            if what.startswith("bfloat16"):
                plain.append(spent)
            faster = min(plain) / spent if plain else None
            of_copy = None if read is None else read / spent / bandwidth
            record |= {"milliseconds": 1e3 * spent, "of_copy": of_copy, "over_bfloat16": faster}
            records.append(record)
            print(json.dumps(record), flush=True)

        for name in ("xla", "cudnn"):
            attend = partial(jax.nn.dot_product_attention, implementation=name)
            measure(f"bfloat16, {name}", attend, k.nbytes + v.nbytes, q, k, v)
        for bits in (2, 4, 8):
            q, view, position, mode = full_cache(tokens, batch=batch, bits=bits)
            read = sum(x.nbytes for x in jax.tree.leaves(view))
            attend = partial(decode_attention, impl="triton")
            measure(f"{bits} bits", attend, read, q, view, position, mode)
            mixed = mode.at[:, 2:].set(1)
            measure(f"{bits} bits, 6 of 8 heads sparse", attend, None, q, view, position, mixed)
    return records
