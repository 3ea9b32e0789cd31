import itertools

import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels.schedule import AttentionSpec, Schedule, block_schedule, visitors_stop

BLOCK, BLOCKS = 4, 12


def dense_blocks(sparse: bool, start: int, diag: int, spec: AttentionSpec) -> set[int]:
    """Blocks that hold at least one allowed pair, from the token-level definition."""
    q = np.arange(diag * BLOCK, (diag + 1) * BLOCK)[:, None]
    k = np.arange(BLOCKS * BLOCK)
    allowed = (k <= q) & (k // BLOCK >= start)
    if sparse:
        allowed &= (k // BLOCK - start < spec.sink_blocks) | (k // BLOCK > diag - spec.local_blocks)
    if spec.window is not None:
        allowed &= q - k < spec.window
    return set((k // BLOCK)[allowed.any(0)].tolist())


SPECS = pytest.mark.parametrize(
    "spec",
    [
        AttentionSpec(sink, local, BLOCK, window, 1.0)
        for sink, local in ((0, 1), (1, 1), (1, 3), (2, 2), (3, 20))
        for window in (None, 1, 3, 4, 5, 6, 17)
    ],
)


@SPECS
def test_visits_exactly_the_blocks_of_the_dense_mask(spec):
    points = [
        (sparse, start, diag)
        for sparse, start, diag in itertools.product((False, True), (0, 2, 5), range(BLOCKS))
        if start <= diag
    ]
    sparse, start, diag = (jnp.asarray(x) for x in zip(*points, strict=True))
    plans = Schedule(*(np.asarray(x) for x in block_schedule(sparse, start, diag, spec)))
    for index, point in enumerate(points):
        plan = Schedule(*(np.broadcast_to(x, sparse.shape)[index] for x in plans))
        visited = [int(plan.block(t)) for t in range(plan.steps)]
        assert len(set(visited)) == len(visited)
        assert set(visited) == dense_blocks(*point, spec), point
        assert visited[-1] == point[2]
        if point[0]:
            assert set(visited) | set(range(*map(int, plan.middle))) == dense_blocks(False, *point[1:], spec)


def test_a_block_of_padding_visits_nothing():
    spec = AttentionSpec(1, 2, BLOCK, None, 1.0)
    for sparse in (False, True):
        plan = block_schedule(jnp.asarray(sparse), jnp.asarray(6), jnp.asarray(5), spec)
        assert int(plan.steps) == 0
        assert int(plan.middle[0]) >= int(plan.middle[1])


@SPECS
def test_the_inverse_rule_names_the_same_visits(spec):
    for sparse, start in itertools.product((False, True), (0, 2, 5)):
        seen = {diag: dense_blocks(sparse, start, diag, spec) for diag in range(start, BLOCKS)}
        for block in range(start, BLOCKS):
            stop = int(visitors_stop(jnp.asarray(sparse), jnp.asarray(start), BLOCKS, jnp.asarray(block), spec))
            assert set(range(block, stop)) == {diag for diag in seen if block in seen[diag]}, (sparse, start, block)
