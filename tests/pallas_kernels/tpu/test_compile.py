"""What the TPU compilers accept: says nothing about numbers (see the interpreted tests) or speed."""

from functools import partial

import jax
import jax.numpy as jnp
import pytest
from tpu_tools import CHIPS, compile_for, lower_for

from pallas_kernels import dual_attention, hybrid_attention, routed_attention


def shapes(keys=2048, queries=None, kv_heads=1, groups=4, head_dim=128, dtype=jnp.bfloat16):
    q = jax.ShapeDtypeStruct((1, queries or keys, kv_heads * groups, head_dim), dtype)
    return q, *[jax.ShapeDtypeStruct((1, keys, kv_heads, head_dim), dtype)] * 2


MODE = jax.ShapeDtypeStruct((1, 1), jnp.int32)
Z = jax.ShapeDtypeStruct((1, 1), jnp.float32)
MASK = jax.ShapeDtypeStruct((1, 4, 16, 16), jnp.bool_)
IDS = jax.ShapeDtypeStruct((1, 2048), jnp.int32)
hybrid = partial(hybrid_attention, impl="tpu")


def grads(f):
    """Forward and backward of an op, with a cotangent of the shape of q."""

    def run(q, k, v, *rest):
        out, pull = jax.vjp(lambda q, k, v: f(q, k, v, *rest), q, k, v)
        return pull(jax.tree.map(jnp.ones_like, out))

    return run


def packed(q, k, v, mode, ids):
    return hybrid(q, k, v, mode, segment_ids=ids)


def masked(q, k, v, mode, mask):
    return hybrid(q, k, v, mode, block_mask=mask)


def routed(q, k, v, z):
    return jax.vjp(lambda *a: routed_attention(*a, impl="tpu"), q, k, v, z)[1](q)


def routed_between_lists(q, k, v, z, mask):
    return jax.vjp(lambda *a: routed_attention(*a, block_mask=mask, impl="tpu"), q, k, v, z)[1](q)


PROGRAMS = {
    "head dim 64": (grads(hybrid), *shapes(head_dim=64, groups=3), MODE),
    "head dim 96": (grads(hybrid), *shapes(head_dim=96), MODE),
    "head dim 128": (grads(hybrid), *shapes(), MODE),
    "head dim 256": (grads(hybrid), *shapes(head_dim=256, groups=2), MODE),
    "8 query heads": (grads(hybrid), *shapes(groups=8), MODE),
    "1 query head": (grads(hybrid), *shapes(groups=1), MODE),
    "last queries": (grads(hybrid), *shapes(queries=300), MODE),
    "short": (grads(hybrid), *shapes(keys=70), MODE),
    "float32": (grads(hybrid), *shapes(dtype=jnp.float32), MODE),
    "window": (grads(partial(hybrid, window=500)), *shapes(), MODE),
    "packed": (grads(packed), *shapes(), jax.ShapeDtypeStruct((1, 3, 1), jnp.int32), IDS),
    "block mask": (grads(masked), *shapes(), MODE, MASK),
    "dual": (grads(partial(dual_attention, impl="tpu")), *shapes()),
    "routed": (routed, *shapes(), Z),
    "routed, block mask": (routed_between_lists, *shapes(), Z, MASK),
    "log-sum-exp": (grads(partial(hybrid, return_lse=True)), *shapes(), MODE),
}


@pytest.mark.parametrize("name", ["block mask", "routed"])
def test_lowers_without_libtpu(name):
    program, *arguments = PROGRAMS[name]
    assert "tpu_custom_call" in lower_for("v5e", program, *arguments).as_text()


@pytest.mark.slow
@pytest.mark.parametrize("chip", CHIPS)
@pytest.mark.parametrize("name", PROGRAMS)
def test_compiles(chip, name):
    program, *arguments = PROGRAMS[name]
    compile_for(chip, program, *arguments)


@pytest.mark.slow
@pytest.mark.parametrize("chip", CHIPS)
def test_compiles_a_long_prompt(chip):
    """64K tokens of Llama-3.1-8B: nothing quadratic is allocated."""
    compiled = compile_for(chip, hybrid, *shapes(keys=65536, kv_heads=8), jax.ShapeDtypeStruct((1, 8), jnp.int32))
    q_bytes = 65536 * 32 * 128 * 2
    assert compiled.memory_analysis().temp_size_in_bytes <= 4 * q_bytes
