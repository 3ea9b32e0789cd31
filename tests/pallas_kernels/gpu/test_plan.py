import jax.numpy as jnp
import numpy as np
import pytest
from attention_cases import CASES, make_inputs

from pallas_kernels import check_attention
from pallas_kernels.gpu.plan import heaviest_first, key_work, make_plan, query_work
from pallas_kernels.hybrid_attention.reference import allowed_pairs


def block_pairs(inputs, case):
    """Which query block of a KV head has a pair with which key block, `[B, K, Q, J]`, from the dense mask."""
    call, bs = check_attention(inputs.q, inputs.k, inputs.v, **inputs.options), case.block
    dense, geometry = allowed_pairs(call, inputs.mode != 0)[:, :, 0], call.geometry
    dense = jnp.pad(dense, ((0, 0), (0, 0), (geometry.left, geometry.right), (0, geometry.right)))
    return np.asarray(dense.reshape(*dense.shape[:2], -1, bs, geometry.key_blocks, bs).any((3, 5)))


def plan_of(inputs):
    return make_plan(check_attention(inputs.q, inputs.k, inputs.v, **inputs.options), inputs.mode != 0)


SMALL = [case for case in CASES if case.keys <= 200]


@pytest.mark.parametrize("case", SMALL, ids=lambda case: case.name)
def test_key_blocks_name_the_query_blocks_that_visit_them(case):
    inputs = make_inputs(case)
    pairs = block_pairs(inputs, case)
    B, K, Q, J = pairs.shape
    stop = np.asarray(plan_of(inputs).stop_BKJ)[..., None]
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
    plan, heads = plan_of(inputs), case.kv_heads * case.groups
    order = np.asarray(query_work(plan, heads).order)
    steps = np.repeat(np.swapaxes(pairs.sum(3), 1, 2), case.groups, axis=2).reshape(-1)
    assert sorted(order) == list(range(len(steps)))
    assert (np.diff(steps[order]) <= 0).all()
    assert sorted(np.asarray(key_work(plan).order)) == list(range(pairs.shape[0] * pairs.shape[1] * pairs.shape[3]))


def test_ties_keep_their_order():
    assert heaviest_first(jnp.asarray([[1, 3], [3, 2]])).tolist() == [1, 2, 3, 0]
