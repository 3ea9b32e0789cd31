"""Choice of outlier tokens: worked competitions, and a plain Python model of the rule."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from elastic_jax.kv_cache.outliers import Outliers, compete, forget, token_scores
from pallas_kernels import dequantize_group, quantize_group

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


@pytest.mark.parametrize(
    ("store", "holes", "pool_and_store", "frozen"),
    [
        (
            32,
            [[1, 3], [4], [8, 10], [15], [16]],
            [
                [[1, 3], []],
                [[1, 4], [3]],
                [[8, 10], [3, 1, 4]],
                [[10, 15], [3, 1, 4, 8]],
                [[15, 16], [3, 1, 4, 8, 10]],
            ],
            [False] * 5,
        ),
        (
            2,
            [[1, 3], [4], [], [], []],
            [[[1, 3], []], *[[[1, 4], [3]]] * 4],
            [False, False, True, True, True],
        ),
    ],
)
def test_competition_and_freeze(store, holes, pool_and_store, frozen):
    state = start(2, store)
    for g, scores in enumerate(GROUPS):
        state, left = feed(state, scores, 4 * g)
        assert left == holes[g]
        assert held(state) == pool_and_store[g]
        assert bool(state.frozen[0]) == frozen[g]


def test_one_group_of_all_tokens_needs_no_store():
    state, holes = feed(start(2, 2), sum(GROUPS, []), 0)
    assert held(state) == [[15, 16], []] and holes == [15, 16]


def test_scores_of_the_worked_group():
    keys = jnp.array([[[8, 1, -1, 0.5], [8.5, 0.5, -0.5, 1], [0.5, 0.25, 0, -0.25], [0.25, -0.25, 0.25, 0.5]]])
    np.testing.assert_allclose(token_scores(keys, stat="l1", scope="head")[0], [10.5, 10.5, 1, 1.25])
    np.testing.assert_allclose(token_scores(keys, stat="l2", scope="head")[0, 2:], [0.612, 0.661], atol=1e-3)
    both = jnp.concatenate([keys, 2 * keys])
    np.testing.assert_allclose(token_scores(both, stat="l1", scope="layer"), [[31.5, 31.5, 3, 3.75]] * 2)


def test_equal_scores_go_to_the_older_token():
    state, _ = feed(start(2, 8), [5, 1, 1, 1], 0)
    state, holes = feed(state, [1, 1, 1, 1], 4)
    assert held(state) == [[1, 2], []] and holes == []


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


SINKS, LARGE = [0, 5, 90], [3, 40, 77, 101]
"""Tokens with keys of a tenth of the size, and channels that are large and nearly constant for all others."""


def group_with_sinks():
    rng = np.random.default_rng(0)
    keys = rng.standard_normal((128, 128), np.float32)
    keys[:, LARGE] = np.float32([12, -10, 9, -14]) + np.float32(0.5) * rng.standard_normal((128, 4), np.float32)
    keys[SINKS] = np.float32(0.1) * rng.standard_normal((3, 128), np.float32)
    return keys


def through_two_bits(keys, holes):
    """What is read back: codes of the group, outliers exact."""
    holes = jnp.asarray(holes)[:, None]
    back = dequantize_group(*quantize_group(keys, axis=0, bits=2, valid=~holes), axis=0)
    return np.asarray(jnp.where(holes, keys, back))


def choose_outliers(keys, count):
    score = token_scores(jnp.asarray(keys), stat="l1", scope="head")
    state = Outliers.empty((), count, 0, 128, jnp.float32)
    return np.asarray(run(state, keys, keys, score, jnp.arange(128), jnp.array(True))[1])


def error_of_kept(keys, holes, channels):
    seen = np.setdiff1d(np.arange(128), [*SINKS, *np.flatnonzero(holes)])
    return np.mean((through_two_bits(keys, holes) - keys)[np.ix_(seen, channels)] ** 2)


def test_all_small_keys_of_a_group_must_be_left_out():
    """Three keys of a tenth of the size: excluding two of them gives back almost nothing, the largest nothing."""
    keys, others = group_with_sinks(), np.setdiff1d(np.arange(128), LARGE)
    score = np.asarray(token_scores(jnp.asarray(keys), stat="l1", scope="head"))
    np.testing.assert_allclose(score[SINKS], [9.966, 9.617, 10.897], atol=1e-3)
    np.testing.assert_allclose(np.sort(np.delete(score, SINKS))[0], 128.38, atol=1e-2)
    for count, error in ((0, 1.77111), (1, 1.77105), (2, 1.76731), (3, 0.07087), (4, 0.06800), (6, 0.06780)):
        holes = choose_outliers(keys, count)
        assert holes.sum() == count
        np.testing.assert_allclose(error_of_kept(keys, holes, LARGE), error, rtol=2e-3)
        if count <= 3:
            np.testing.assert_allclose(error_of_kept(keys, holes, others), 0.2546, rtol=1e-3)
    largest = np.isin(np.arange(128), np.argsort(score)[-3:])
    np.testing.assert_allclose(error_of_kept(keys, largest, LARGE), 1.76046, rtol=2e-3)


def test_exact_outliers_give_attention_back():
    """A query that looks for the small keys: mass on them, and distance of the weights from the exact ones."""
    keys, query = group_with_sinks(), np.random.default_rng(1).standard_normal(128, np.float32)
    query[LARGE] = [-2, 2, -2, 2]

    def weights(k):
        return np.asarray(jax.nn.softmax(jnp.asarray(k @ query * 128**-0.5)))

    exact = weights(keys)
    np.testing.assert_allclose(exact[SINKS].sum(), 0.97913, atol=1e-4)
    for count, mass, distance in ((0, 0.96102, 0.34288), (3, 0.97892, 0.00851)):
        got = weights(through_two_bits(keys, choose_outliers(keys, count)))
        np.testing.assert_allclose(got[SINKS].sum(), mass, atol=1e-4)
        np.testing.assert_allclose(np.abs(got - exact).sum(), distance, rtol=1e-2)
