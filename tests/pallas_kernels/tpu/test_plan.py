import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels.blocks import Geometry, describe_rows
from pallas_kernels.schedule import AttentionSpec
from pallas_kernels.tpu import limits
from pallas_kernels.tpu.backward import deal_heads
from pallas_kernels.tpu.limits import compiler_params, tile_width
from pallas_kernels.tpu.plan import LaunchSizes, head_work, list_blocks, make_tables

BLOCK = 4


@pytest.mark.parametrize("window", [None, 6])
def test_lists_hold_the_visible_blocks_of_each_group(window):
    """Two segments of three blocks; queries are the last five blocks; head 0 is listed, head 1 follows the schedule."""
    spec, groups = AttentionSpec(1, 2, BLOCK, window, 1.0), 3
    sizes = LaunchSizes(1, 2, 1, groups, 8, Geometry(BLOCK, 5 * BLOCK, 6 * BLOCK))
    rows = describe_rows(1, sizes.geometry, None, jnp.repeat(jnp.asarray([[1, 2]]), 3 * BLOCK, axis=1))
    mask = np.random.default_rng(0).random((1, 2 * groups, 5, 6)) < 0.5
    sparse = jnp.asarray([[True, False]])
    lists = np.asarray(list_blocks(sparse, rows, sizes, spec, jnp.asarray(mask), None))
    assert lists.shape == (2, 6, 1, 1 + 2 * 6)
    assert (lists[1, :5, 0, 0] == -1).all()
    for q in range(5):
        diag, (count, *rest) = q + 1, lists[0, q, 0]
        first = diag // 3 * 3 if window is None else max(diag // 3 * 3, (diag * BLOCK - window + 1) // BLOCK)
        seen = {j: mask[0, :groups, q, j] for j in range(first, diag + 1) if mask[0, :groups, q, j].any()}
        assert rest[:count] == sorted(seen)
        assert rest[6 : 6 + count] == [int(seen[j] @ [1, 2, 4]) for j in sorted(seen)]

    tables = make_tables(sparse, rows, sizes)
    work = head_work(tables, jnp.asarray(lists), sizes, spec)
    assert work[0] == lists[0, :5, 0, 0].sum()
    assert work[1] == 2 + 3 + 1 + 2 + 3


@pytest.mark.parametrize("work", [[5, 1, 4, 2], [1, 9, 3], [7], list(range(16))])
def test_both_cores_get_about_the_same_work(work):
    order = np.asarray(deal_heads(jnp.asarray(work)))
    assert sorted(order) == list(range(len(order)))
    assert len(order) == len(work) + len(work) % 2
    shares = [sum(work[p] for p in half if p < len(work)) for half in order.reshape(2, -1)]
    assert abs(shares[0] - shares[1]) <= max(work)


def test_tables_that_do_not_fit_are_refused():
    geometry = Geometry(128, 128, 2**18)
    sizes = LaunchSizes(256, 1, 1, 1, 64, geometry)
    with pytest.raises(ValueError, match="scalar memory"):
        make_tables(jnp.zeros((256, 1), jnp.bool_), describe_rows(256, geometry, None, None), sizes)


@pytest.mark.parametrize("kernel, wanted", [("forward", [8, 8, 4, 1]), ("backward", [4, 4, 2, 1])])
def test_tiles_shrink_for_many_query_heads_until_nothing_fits(kernel, wanted):
    widths = [tile_width(kernel, groups * 128, 128, 128) for groups in (1, 8, 16, 64)]
    assert widths == wanted
    with pytest.raises(ValueError, match="needs 61.0 MiB"):
        compiler_params(61 * 2**20)


def test_a_chip_with_a_table_takes_its_tiles(monkeypatch):
    monkeypatch.setattr(limits, "table", {"v6e": {"forward": {"128": 2}}, None: {}}.get)
    device = jax.sharding.AbstractDevice(device_kind="TPU v6 lite", num_cores=1, platform="tpu")
    with jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((), (), abstract_device=device)):
        assert tile_width("forward", 512, 128, 128) == 2
        assert tile_width("backward", 512, 128, 128) == 4
    assert tile_width("forward", 512, 128, 128) == 8


@pytest.mark.parametrize("name", limits.CHIPS.values())
def test_tables_hold_powers_of_two_by_kernel_and_head_dim(name):
    for kernel, by_head_dim in limits.table(name).items():
        assert kernel in limits.WIDEST_TILE
        for head_dim, width in by_head_dim.items():
            assert head_dim in ("64", "96", "128", "256") and width.bit_count() == 1


def test_more_groups_than_bits_are_refused():
    sizes = LaunchSizes(1, 1, 1, 32, 8, Geometry(BLOCK, BLOCK, BLOCK))
    rows = describe_rows(1, sizes.geometry, None, None)
    mask = jnp.ones((1, 32, 1, 1), jnp.bool_)
    with pytest.raises(NotImplementedError, match="at most 31"):
        list_blocks(jnp.ones((1, 1), jnp.bool_), rows, sizes, AttentionSpec(1, 2, BLOCK, None, 1.0), mask, None)
