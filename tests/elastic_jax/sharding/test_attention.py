from dataclasses import replace

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AbstractMesh, AxisType
from programs import reports
from tiny import CONFIG, random_ids, tiny_model

from elastic_jax.errors import ConfigError
from elastic_jax.sharding.attention import on_mesh
from elastic_jax.sharding.division import Halo, context_size, find_division, find_halo, halo_is_cheaper, mesh_divides
from pallas_kernels import dual_attention, hybrid_attention, routed_attention
from pallas_kernels.schedule import AttentionSpec

PUBLISHED = AttentionSpec(sink_blocks=1, local_blocks=16, block_size=128, window=None, scale=1.0)


def assert_equal_to_one_device(group: str) -> dict[str, dict]:
    """The reports of a group of checks, of which none differs."""
    found = {report["check"]: report for report in reports("context_parallel_program.py", group)}
    assert found and {check: report for check, report in found.items() if not report["error"] <= 2e-6} == {}
    return found


def test_attention_over_a_mesh_is_that_of_one_device():
    """Outputs and gradients of the ops, logits of a routing model; under a window keys move between neighbours only."""
    found = assert_equal_to_one_device("fast")
    assert not {"all-gather", "reduce-scatter"} & set(found["window, halo"]["collectives"])


@pytest.mark.slow
def test_attention_over_a_mesh_is_that_of_one_device_in_all_forms():
    assert_equal_to_one_device("slow")


def test_no_mesh_is_no_division():
    assert context_size() == 1 and not mesh_divides() and on_mesh(hybrid_attention) is hybrid_attention


def no_devices(**sizes: int):
    """A mesh that is set for tracing only."""
    mesh = AbstractMesh(tuple(sizes.values()), tuple(sizes), axis_types=(AxisType.Auto,) * len(sizes))
    return jax.sharding.use_abstract_mesh(mesh)


def test_rows_and_heads_go_over_the_axes_that_divide_them():
    with no_devices(data=2, fsdp=3, tensor=4, context=2):
        assert context_size() == 2
        whole = find_division(6, 16, 4)
        assert (whole.rows, whole.heads, whole.tokens, whole.repeats) == (
            ("data", "fsdp"),
            ("tensor",),
            ("context",),
            1,
        )
        few_rows = find_division(4, 16, 4)
        assert few_rows.rows == ("data",)
        few_kv_heads = find_division(6, 16, 2)
        assert (few_kv_heads.heads, few_kv_heads.repeats) == (("tensor",), 2)
        undividable = find_division(6, 6, 2)
        assert (undividable.heads, undividable.repeats) == ((), 1)


def operands(queries: int = 64, keys: int = 64):
    q, k = jnp.zeros((1, queries, 4, 8)), jnp.zeros((1, keys, 2, 8))
    return q, k, k


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda: on_mesh(dual_attention)(*operands(queries=32), block_size=16), "32 queries for 64 keys"),
        (
            lambda: on_mesh(hybrid_attention)(
                *operands(), jnp.zeros((1, 2)), block_size=16, block_mask=jnp.zeros((1, 4, 4, 4), bool)
            ),
            "block masks",
        ),
        (lambda: on_mesh(routed_attention)(*operands(), jnp.zeros((1, 3)), block_size=16), "wanted \\(1, 2\\)"),
        (lambda: on_mesh(routed_attention)(*operands(), jnp.zeros((1, 2)), block_size=0), "block_size is 0"),
    ],
)
def test_refuses_what_cannot_be_divided(call, words):
    with no_devices(context=4), pytest.raises(ValueError, match=words):
        jax.eval_shape(call)


def test_patterns_that_choose_blocks_are_refused():
    model = tiny_model(router=replace(CONFIG.router, pattern="fa-xa"))
    with no_devices(context=4), pytest.raises(ConfigError, match="pattern fa-xa under a mesh with context 4"):
        jax.eval_shape(model, random_ids((1, 128)))


def test_a_halo_is_what_streaming_sees():
    assert find_halo(65536, 8, PUBLISHED) == Halo(before=15, sinks=1)
    assert find_halo(4096, 4, PUBLISHED) == Halo(before=15, sinks=1)
    assert find_halo(2048, 2, PUBLISHED) == Halo(before=8, sinks=1)
    window = replace(PUBLISHED, sink_blocks=2, window=1025)
    assert find_halo(65536, 8, window) == Halo(before=8 + 2, sinks=0)


@pytest.mark.parametrize(
    "tokens, shards, local_blocks, wins",
    [(65536, 4, 16, True), (262144, 16, 16, True), (8192, 8, 16, True), (65536, 8, 100, True), (65536, 8, 200, False)],
)
def test_a_halo_wins_unless_most_of_the_row_is_local(tokens, shards, local_blocks, wins):
    spec = replace(PUBLISHED, local_blocks=local_blocks)
    assert halo_is_cheaper(tokens, shards, 4, 128, 2, spec, find_halo(tokens, shards, spec)) == wins


@pytest.mark.parametrize("window, wins", [(2048, True), (16384, True), (65536, False)])
def test_a_window_as_long_as_the_row_takes_all_keys(window, wins):
    """The last shard would do nearly twice its share."""
    spec = replace(PUBLISHED, window=window)
    assert halo_is_cheaper(65536, 8, 4, 128, 2, spec, find_halo(65536, 8, spec)) == wins
