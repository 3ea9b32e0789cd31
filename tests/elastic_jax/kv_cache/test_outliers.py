"""Choice of outlier tokens: a plain Python model of the rule."""

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from elastic_jax.kv_cache.outliers import Outliers, compete, forget, token_scores

run = jax.jit(compete)
GROUPS = [[9, 2, 8, 7], [1, 6, 5, 8], [0.5, 7, 0.25, 9], [3, 4, 5, 0.1], [0.01, 2, 3, 4]]


def start(pool, store):
    return Outliers.empty((1,), pool, store, 1, jnp.float32)


def feed(state, scores, first, active=True):
    """One group whose keys are the positions and whose values are their negatives."""
    pos = jnp.arange(first, first + len(scores), dtype=jnp.int32)
    k = pos[None, :, None].astype(jnp.float32)
    state, holes = run(state, k, -k, jnp.asarray([scores], jnp.float32), pos[None], jnp.array([active]))
    return state, [int(p) for p in pos[np.asarray(holes[0])]]


def held(state):
    """Positions of pool and store, after checking that keys and values came along."""
    pos, pool = np.asarray(state.pos[0]), state.score.shape[-1]
    np.testing.assert_array_equal(state.k[0, :, 0], np.where(pos >= 0, pos, 0))
    np.testing.assert_array_equal(state.v[0, :, 0], np.where(pos >= 0, -pos, 0))
    np.testing.assert_array_equal(np.isfinite(state.score[0]), pos[:pool] >= 0)
    return [[int(p) for p in part if p >= 0] for part in (pos[:pool], pos[pool:])]


def test_one_group_of_all_tokens_needs_no_store():
    state, holes = feed(start(2, 2), sum(GROUPS, []), 0)
    assert held(state) == [[15, 16], []] and holes == [15, 16]


def test_scores_of_the_worked_group():
    keys = jnp.array([[[8, 1, -1, 0.5], [8.5, 0.5, -0.5, 1], [0.5, 0.25, 0, -0.25], [0.25, -0.25, 0.25, 0.5]]])
    np.testing.assert_allclose(token_scores(keys, stat="l1", scope="head")[0], [10.5, 10.5, 1, 1.25])
    np.testing.assert_allclose(token_scores(keys, stat="l2", scope="head")[0, 2:], [0.612, 0.661], atol=1e-3)
    both = jnp.concatenate([keys, 2 * keys])
    np.testing.assert_allclose(token_scores(both, stat="l1", scope="layer"), [[31.5, 31.5, 3, 3.75]] * 2)


def test_tokens_of_infinite_score_and_inactive_entries_never_win():
    state, holes = feed(start(3, 8), [np.inf, 4, np.inf, np.inf], 0)
    assert held(state) == [[1], []] and holes == [1]
    state, holes = feed(state, [0, 0, 0, 0], 4, active=False)
    assert held(state) == [[1], []] and holes == [] and not bool(state.frozen[0])


def test_forgotten_tokens_make_room():
    state = start(2, 1)
    for g, scores in enumerate(GROUPS[:2]):
        state, _ = feed(state, scores, 4 * g)
    assert held(state) == [[1, 4], [3]]
    state, holes = feed(forget(state, state.pos >= 4), GROUPS[2], 8)
    assert held(state) == [[8, 10], [4]] and holes == [8, 10] and not bool(state.frozen[0])


@settings(max_examples=40)
@given(
    scores=st.lists(st.lists(st.integers(0, 12), min_size=4, max_size=4), min_size=1, max_size=6),
    store=st.sampled_from([0, 2, 8]),
)
def test_pool_holds_the_least_scores_flushed_before_freezing(scores, store):
    state, pool, evicted, holes, flat = start(2, store), [], [], [], sum(scores, [])
    frozen = False
    for g, group in enumerate(scores):
        state, left = feed(state, group, 4 * g)
        best = sorted(range(4 * (g + 1)), key=lambda p: (flat[p], p))[:2]
        losers = [p for p in pool if p not in best]
        frozen |= len(evicted) + len(losers) > store
        if not frozen:
            evicted += losers
            holes += left
            pool = sorted(best)
        assert held(state) == [pool, evicted]
        assert bool(state.frozen[0]) == frozen
        assert sorted(holes) == sorted(pool + evicted)
