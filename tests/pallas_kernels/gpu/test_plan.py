import jax.numpy as jnp
import numpy as np
import pytest
from attention_cases import CASES, make_inputs

from pallas_kernels.blocks import Geometry, describe_rows
from pallas_kernels.checks import attention_spec
from pallas_kernels.gpu.plan import heaviest_first, key_work, make_plan, query_work
from pallas_kernels.hybrid_attention.reference import allowed_pairs


def block_pairs(inputs, case):
    """Which query block of a KV head has a pair with which key block, `[B, K, Q, J]`, from the dense mask."""
    (queries, keys), bs = (inputs.q.shape[1], inputs.k.shape[1]), case.block
    dense = allowed_pairs(
        inputs.mode, spec_of(case), queries, keys,
        block_mask=None, full_block_mask=None, groups=case.groups,
        segment_ids=inputs.options["segment_ids"], lengths=inputs.options["lengths"],
    )[:, :, 0]  # fmt: skip
    geometry = Geometry(bs, queries, keys)
    dense = jnp.pad(dense, ((0, 0), (0, 0), (geometry.left, geometry.right), (0, geometry.right)))
    return np.asarray(dense.reshape(*dense.shape[:2], -1, bs, geometry.key_blocks, bs).any((3, 5)))


def spec_of(case):
    return attention_spec(
        case.head_dim, sink_blocks=case.sink, local_blocks=case.local, block_size=case.block, window=case.window,
        scale=None,
    )  # fmt: skip


def plan_of(inputs, case):
    geometry = Geometry(case.block, inputs.q.shape[1], inputs.k.shape[1])
    rows = describe_rows(case.batch, geometry, inputs.options["lengths"], inputs.options["segment_ids"])
    return make_plan(inputs.mode != 0, rows, spec_of(case), geometry, heads=case.kv_heads * case.groups)


SMALL = [case for case in CASES if case.keys <= 200]


@pytest.mark.parametrize("case", SMALL, ids=lambda case: case.name)
def test_key_blocks_name_the_query_blocks_that_visit_them(case):
    inputs = make_inputs(case)
    pairs = block_pairs(inputs, case)
    B, K, Q, J = pairs.shape
    stop = np.asarray(plan_of(inputs, case).stop_BKJ)[..., None]
    query_block = np.arange(J - Q, J)
    visited = (query_block >= np.arange(J)[:, None]) & (query_block < stop)
    # A run may name a visit of which padding or the token window leaves nothing; it never misses one.
    assert not (np.swapaxes(pairs, 2, 3) & ~visited).any()
    if case.window is None and case.lengths is None and case.segments is None:
        assert (np.swapaxes(pairs, 2, 3) == visited).all()


@pytest.mark.parametrize("case", SMALL, ids=lambda case: case.name)
def test_heavy_work_starts_first(case):
    inputs = make_inputs(case)
    pairs = block_pairs(inputs, case)
    plan, heads = plan_of(inputs, case), case.kv_heads * case.groups
    order = np.asarray(query_work(plan, heads).order)
    steps = np.repeat(np.swapaxes(pairs.sum(3), 1, 2), case.groups, axis=2).reshape(-1)
    assert sorted(order) == list(range(len(steps)))
    assert (np.diff(steps[order]) <= 0).all()
    assert sorted(np.asarray(key_work(plan).order)) == list(range(pairs.shape[0] * pairs.shape[1] * pairs.shape[3]))


def test_ties_keep_their_order():
    assert heaviest_first(jnp.asarray([[1, 3], [3, 2]])).tolist() == [1, 2, 3, 0]
