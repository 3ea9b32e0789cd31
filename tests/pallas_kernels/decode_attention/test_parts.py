"""The parts of a worked decode step, their join, and what a visible hole would do."""

import math

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels import CacheView, Pages, decode_attention, pack, quantize_group
from pallas_kernels.decode_attention.xla import join, visit_exact, visit_groups

K = np.array(
    [[8, 1, -1, .5], [8.5, .5, -.5, 1], [.5, .25, 0, -.25], [9, -1, 1, 0],
     [8.25, 1.5, -1.5, .5], [8.75, 0, .5, -.5], [.25, -.25, .25, .5], [9.5, -.5, 0, 1]], np.float32
)  # fmt: skip
V = np.array(
    [[0, 1, 2, 3], [3, 2, 1, 0], [5] * 4, [1, 1, 0, 0], [0, 3, 0, 3], [2] * 4, [-4] * 4, [0, 0, 3, 3]], np.float32
)
F_K, F_V = np.float32([[8, 1, .5, 0], [7.5, -1, 1, .5]]), np.float32([[1, 0, 0, 0], [0, 0, 0, 1]])  # fmt: skip
Q = np.array([0.5, -1, 2, 0.25], np.float32)
SCALE = 0.5
POOL = [2, 6]
KEPT = [0, 1, 3, 4, 5, 7]
OUT = [0.691226, 0.644602, 0.655819, 0.935625]


def group_of(k, v, holes) -> Pages:
    """A page of 32 places: the eight tokens, then places left out."""
    k, v, holes = (np.concatenate([x, np.full((24, *x.shape[1:]), fill, x.dtype)]) for x, fill in
                   ((k, 0), (v, 0), (holes, True)))  # fmt: skip
    k_codes, k_scale, k_zero = quantize_group(jnp.asarray(k), axis=0, bits=2, valid=~holes[:, None])
    v_codes, v_scale, v_zero = quantize_group(jnp.asarray(v)[:, None], axis=-1, bits=2)
    packed = (pack(k_codes, bits=2), pack(v_codes[:, 0], bits=2), pack(jnp.asarray(holes[:, None], jnp.uint8), bits=1))
    pages = Pages(packed[0], k_scale, k_zero, None, packed[1], v_scale, v_zero, packed[2])
    return jax.tree.map(lambda x: x[None], pages)


def parts():
    """Partial softmax of the group without pool, of the pool and of the newest tokens; scores in base 2."""
    pages = jax.tree.map(lambda x: x[None], group_of(K, V, np.isin(np.arange(8), POOL)))
    q = jnp.asarray(Q)[None, None] * (SCALE * math.log2(math.e))
    visible = jnp.asarray(np.isin(np.arange(32), KEPT)).reshape(1, 1, 1, 32)
    exact = [
        visit_exact(q, jnp.asarray(k)[None], jnp.asarray(v)[None], jnp.ones((1, 1, 2), bool))
        for k, v in ((K[POOL], V[POOL]), (F_K, F_V))
    ]
    return visit_groups(q, pages, visible), *exact


def test_every_part_of_the_worked_step():
    wanted = (
        (3.75, 1.806659, [1.784548, 1.829004, 1.860118, 1.904574]),
        (0.5, 1.587870, [-1.060652] * 4),
        (3.4375, 1.237521, [0.237521, 0, 0, 1]),
    )
    for part, (top, total, acc) in zip(parts(), wanted, strict=True):
        np.testing.assert_allclose(part.top_IR[0, 0] / math.log2(math.e), top, rtol=1e-6)
        np.testing.assert_allclose(part.sum_IR[0, 0], total, rtol=2e-6)
        np.testing.assert_allclose(part.acc_IRH[0, 0], acc, rtol=2e-6, atol=1e-6)
    tops, sums = (np.array([float(x[i][0, 0]) for x in parts()]) for i in (1, 2))
    np.testing.assert_allclose(np.log(np.sum(sums * 2.0**tops)), 4.770152, atol=2e-6)


def test_parts_join_in_any_order():
    group, pool, newest = parts()
    for done, exact in (((group, pool), newest), ((newest, group), pool)):
        stacked = jax.tree.map(lambda *x: jnp.concatenate(x), *done)
        out = join(stacked, jnp.array([[0, 1]]), jnp.array([[True, True]]), exact)
        np.testing.assert_allclose(out[0, 0], OUT, atol=2e-6)
    unused = jax.tree.map(lambda x: jnp.stack([x[0], jnp.full_like(x[0], jnp.nan)]), newest)
    alone = join(unused, jnp.array([[0, 1]]), jnp.array([[True, False]]), pool)
    two = np.exp(np.r_[F_K, K[POOL]] @ Q * SCALE)
    np.testing.assert_allclose(alone[0, 0], two @ np.r_[F_V, V[POOL]] / two.sum(), atol=2e-6)


def test_scores_and_weights_by_the_folded_products():
    """Scale into the query, zero into one bias for the group: integer codes remain."""
    codes, scale, zero = quantize_group(
        jnp.asarray(K), axis=0, bits=2, valid=jnp.asarray(np.isin(range(8), KEPT))[:, None]
    )
    np.testing.assert_allclose(Q * scale, [0.25, -0.833333, 1.666667, 0.125], atol=1e-6)
    np.testing.assert_allclose(Q @ zero, 1.875, atol=1e-6)
    scores = (np.asarray(codes, np.float32) @ np.asarray(Q * scale) + float(Q @ zero)) * SCALE
    np.testing.assert_allclose(scores[KEPT], [1.0625, 1.25, 3.75, -0.1875, 2.4375, 2.75], atol=1e-6)
    weights = np.exp(np.r_[scores[KEPT], K[POOL] @ Q * SCALE, F_K @ Q * SCALE])
    wanted = [.024535, .029595, .360540, .007029, .097038, .132635, .008218, .013980, .062652, .263777]  # fmt: skip
    np.testing.assert_allclose(weights / weights.sum(), wanted, atol=1e-6)


def test_a_hole_that_could_be_seen_would_be_a_phantom_token():
    """Places of the pool filled with means and left visible: the result is another one, so holes are masked."""
    k, v = K.copy(), V.copy()
    k[POOL], v[POOL] = K[KEPT].mean(0), V[KEPT].mean(0)

    def attend(k, v, holes):
        exact = (np.r_[F_K, K[POOL]], np.r_[F_V, V[POOL]], np.array([32, 33, *POOL]))
        view = CacheView(
            group_of(k, v, holes), jnp.zeros((1, 1, 1), jnp.int32), jnp.array([32]),
            *(jnp.asarray(x)[None, None] for x in exact),
        )  # fmt: skip
        return decode_attention(jnp.asarray(Q).reshape(1, 1, 1, 4), view, jnp.array([33]), jnp.zeros((1, 1), jnp.int32))

    masked = attend(K, V, np.isin(np.arange(8), POOL)).ravel()
    np.testing.assert_allclose(masked, OUT, atol=2e-6)
    np.testing.assert_allclose(attend(k, v, np.isin(np.arange(8), POOL)).ravel(), OUT, atol=2e-6)
    phantom = attend(k, v, np.zeros(8, bool)).ravel()
    assert np.abs(phantom - masked).max() > 0.03
    np.testing.assert_allclose(phantom, [0.726250, 0.747932, 0.726368, 1.037452], atol=2e-3)
