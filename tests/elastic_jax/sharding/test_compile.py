"""Attention over a mesh, compiled for TPU slices that are not there: kernels inside, collectives as promised."""

import re
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from tpu_tools import tpu_devices

from elastic_jax.sharding import attention

TOKENS, KV_HEADS, GROUPS, HEAD_DIM = 16384, 4, 4, 128
ROW_BYTES = 2 * TOKENS * KV_HEADS * HEAD_DIM * 2
"""Keys and values of a row."""


ON_EIGHT_CHIPS = pytest.mark.parametrize("topology", ["v5e:2x4", "v5p:2x2x2"])
pytestmark = pytest.mark.slow


def compile_on(topology: str, program, *operands, axes=("tensor", "context")):
    """Compiles for a 2 x 4 mesh of eight chips; operands are (shape, type, spec)."""
    devices = tpu_devices(topology, "v5litepod-8")
    mesh = Mesh(np.reshape(devices, (2, 4)), axes, axis_types=(AxisType.Auto,) * 2)
    placed = [jax.ShapeDtypeStruct(s, t, sharding=NamedSharding(mesh, PartitionSpec(*spec))) for s, t, spec in operands]
    with jax.set_mesh(mesh):
        return jax.jit(program).lower(*placed).compile()


BY_TOKEN, BY_HEAD = (None, "context", "tensor"), (None, "tensor")
Q = ((1, TOKENS, KV_HEADS * GROUPS, HEAD_DIM), jnp.bfloat16, BY_TOKEN)
KV = ((1, TOKENS, KV_HEADS, HEAD_DIM), jnp.bfloat16, BY_TOKEN)


def routed(q, k, v, z, d_out):
    return jax.vjp(lambda *a: attention.routed_attention(*a, impl="tpu"), q, k, v, z)[1](d_out)


def hybrid(q, k, v, mode, d_out):
    return jax.vjp(lambda *a: attention.hybrid_attention(*a, mode, impl="tpu"), q, k, v)[1](d_out)


def windowed(q, k, v, mode, d_out):
    return attention.hybrid_attention(q, k, v, mode, window=1024, impl="tpu")


def chosen(q, k):
    return attention.select_blocks(q, k)


def kinds(compiled) -> Counter:
    words = (
        r" (all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter|conditional|custom-call)(?:-start)?\("
    )
    return Counter(re.findall(words, compiled.as_text()))


@ON_EIGHT_CHIPS
def test_training_form_compiles_in_bounded_memory(topology):
    compiled = compile_on(topology, routed, Q, KV, KV, ((1, KV_HEADS), jnp.float32, BY_HEAD), Q)
    found, memory = kinds(compiled), compiled.memory_analysis().temp_size_in_bytes
    print(topology, dict(found), f"{memory / 2**20:.0f} MiB for {ROW_BYTES / 2 / 2**20:.0f} MiB of keys and values")
    assert found["all-to-all"] == 0 and "tpu_custom_call" in compiled.as_text()
    assert memory <= 12 * ROW_BYTES / 2


@ON_EIGHT_CHIPS
def test_heads_that_stream_may_pass_the_gather_by(topology):
    """Each head takes one of two ways, forward and backward."""
    found = kinds(compile_on(topology, hybrid, Q, KV, KV, ((1, KV_HEADS), jnp.int32, BY_HEAD), Q))
    print(topology, dict(found))
    assert found["conditional"] >= 2 and found["all-gather"] > 0


@ON_EIGHT_CHIPS
def test_under_a_window_keys_move_between_neighbours_only(topology):
    found = kinds(compile_on(topology, windowed, Q, KV, KV, ((1, KV_HEADS), jnp.int32, BY_HEAD), Q))
    assert set(found) == {"collective-permute", "custom-call"}


@ON_EIGHT_CHIPS
def test_each_device_chooses_the_blocks_of_its_rows_and_heads(topology):
    axes = ("data", "tensor")
    q, k = (((2, TOKENS, heads, HEAD_DIM), jnp.bfloat16, ("data", None, "tensor")) for heads in (16, 4))
    compiled = compile_on(topology, chosen, q, k, axes=axes)
    assert not [kind for kind in kinds(compiled) if kind.startswith("all") or "scatter" in kind]
