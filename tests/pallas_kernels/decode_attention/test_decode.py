"""Decode attention: a worked example, the loop over groups against the definition, and what is never read."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pallas_kernels import CacheView, Pages, decode_attention, pack, quantize_group
from pallas_kernels.decode_attention import xla

IMPLS = ["reference", "xla"]
B, N, K, H, G, J = 2, 4, 2, 8, 32, 6
OPTIONS = {"block_size": 16, "local_blocks": 3}

attend = jax.jit(
    decode_attention, static_argnames=("sink_blocks", "local_blocks", "block_size", "window", "scale", "impl")
)


def make_pages(k, v, holes, *, bits=2, channels=4, norm=None) -> Pages:
    """Pages `[..., G, H]` with float32 metadata."""
    divided = k if norm is None else k / norm[..., None]
    k_codes, k_scale, k_zero = quantize_group(divided, axis=-2, bits=bits, valid=~holes[..., None])
    v_codes, v_scale, v_zero = quantize_group(v.reshape(*v.shape[:-1], -1, channels), axis=-1, bits=bits)
    codes = (pack(x.reshape(v.shape), bits=bits) for x in (k_codes, v_codes))
    k_codes, v_codes = codes
    packed_holes = pack(holes[..., None].astype(jnp.uint8), bits=1)
    return Pages(k_codes, k_scale, k_zero, norm, v_codes, v_scale, v_zero, packed_holes)


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize(
    ("outliers", "wanted"),
    [((2, 6), [0.691226, 0.644602, 0.655819, 0.935625]), ((), [0.732330, 0.700627, 0.660271, 0.930535])],
)
def test_worked_example(impl, outliers, wanted):
    """Eight tokens in a group (the other 24 places are holes), two outliers or none, two new tokens."""
    keys = np.zeros((32, 4), np.float32)
    keys[:8] = [
        [8, 1, -1, 0.5], [8.5, 0.5, -0.5, 1], [0.5, 0.25, 0, -0.25], [9, -1, 1, 0],
        [8.25, 1.5, -1.5, 0.5], [8.75, 0, 0.5, -0.5], [0.25, -0.25, 0.25, 0.5], [9.5, -0.5, 0, 1],
    ]  # fmt: skip
    values = np.zeros((32, 4), np.float32)
    values[:8] = [
        [0, 1, 2, 3], [3, 2, 1, 0], [5, 5, 5, 5], [1, 1, 0, 0], [0, 3, 0, 3], [2, 2, 2, 2], [-4, -4, -4, -4],
        [0, 0, 3, 3],
    ]  # fmt: skip
    holes = np.arange(32) >= 8
    holes[list(outliers)] = True
    exact_k, exact_v = np.zeros((2, 4, 4), np.float32)
    exact_k[:2], exact_v[:2] = [[8, 1, 0.5, 0], [7.5, -1, 1, 0.5]], [[1, 0, 0, 0], [0, 0, 0, 1]]
    pos = np.array([32, 33, -1, -1])
    for slot, token in enumerate(outliers, start=2):
        exact_k[slot], exact_v[slot], pos[slot] = keys[token], values[token], token
    view = CacheView(
        make_pages(jnp.asarray(keys)[None], jnp.asarray(values)[None], jnp.asarray(holes)[None]),
        jnp.zeros((1, 1, 1), jnp.int32),
        jnp.array([32]),
        *(jnp.asarray(x)[None, None] for x in (exact_k, exact_v, pos)),
    )
    q = jnp.array([0.5, -1, 2, 0.25]).reshape(1, 1, 1, 4)
    out = attend(q, view, jnp.array([33]), jnp.zeros((1, 1), jnp.int32), impl=impl)
    np.testing.assert_allclose(out.ravel(), wanted, atol=2e-6)


def make_case(queries, *, bits=2, norm=False, lengths=(180, 77), seed=None):
    """Rows of 180 and 77 tokens, 160 and 64 of them in groups on shuffled pages, three outliers a head."""
    rng = np.random.default_rng(queries if seed is None else seed)
    quantized = [(n - queries) // G * G for n in lengths]
    k, v = rng.standard_normal((2, B, K, J * G, H), np.float32)
    outlier_pos = np.array([[[*rng.permutation(n)[:3]] if n else [-1] * 3 for _ in range(K)] for n in quantized])
    holes = (np.arange(J * G) == outlier_pos[..., None]).any(2)
    ring = [
        np.concatenate([np.arange(n0, n), np.full(60 - n + n0, -1)]) for n0, n in zip(quantized, lengths, strict=True)
    ]
    pos = np.concatenate([outlier_pos, np.broadcast_to(np.stack(ring)[:, None], (B, K, 60))], -1)
    order = rng.permutation(2 * B * K * J)[: B * K * J]

    def grouped(x):
        return x.reshape(B * K * J, G, *x.shape[3:])

    norms = jnp.asarray(rng.uniform(0.5, 2, (B * K * J, G)), jnp.float32) if norm else None
    pages = make_pages(*map(jnp.asarray, map(grouped, (k, v, holes))), bits=bits, norm=norms)
    pool = jax.tree.map(lambda x: jnp.zeros((2 * B * K * J, *x.shape[1:]), x.dtype).at[order].set(x), pages)
    exact = [np.take_along_axis(x, np.maximum(pos, 0)[..., None], 2) for x in (k, v)]
    view = CacheView(
        pool,
        jnp.asarray(order.reshape(B, K, J), jnp.int32),
        jnp.asarray(quantized),
        *map(jnp.asarray, exact),
        jnp.asarray(pos),
    )
    q = jnp.asarray(rng.standard_normal((B, queries, N, H)), jnp.float32)
    return q, view, jnp.asarray(lengths) - queries, jnp.array([[0, 1], [1, 0]])


@pytest.mark.parametrize(
    ("case", "options"),
    [
        ({"queries": 1}, OPTIONS),
        ({"queries": 8, "bits": 4, "norm": True}, OPTIONS),
        ({"queries": 3, "bits": 8}, {"block_size": 24, "local_blocks": 2, "sink_blocks": 3}),
        ({"queries": 2, "lengths": (20, 77)}, {**OPTIONS, "window": 60}),
    ],
)
def test_loop_over_groups_equals_the_definition(case, options):
    inputs = make_case(**case)
    np.testing.assert_allclose(
        attend(*inputs, **options), attend(*inputs, **options, impl="reference"), atol=2e-5, rtol=1e-5
    )


@settings(max_examples=15)
@given(
    lengths=st.tuples(*[st.integers(3, J * G)] * 2),
    mode=st.lists(st.integers(0, 1), min_size=4, max_size=4),
    seed=st.integers(0, 99),
)
def test_any_mixture_of_lengths_and_heads_equals_the_definition(lengths, mode, seed):
    q, view, position, _ = make_case(3, lengths=lengths, seed=seed)
    inputs = (q, view, position, jnp.array(mode).reshape(B, K))
    np.testing.assert_allclose(
        attend(*inputs, **OPTIONS), attend(*inputs, **OPTIONS, impl="reference"), atol=2e-5, rtol=1e-5
    )


@pytest.mark.parametrize("tiles_at_once", [1, 3])
def test_a_long_list_of_tiles_is_taken_in_pieces(tiles_at_once, monkeypatch):
    """Five tiles: one at a time, and in pieces of three of which the last is not full."""
    monkeypatch.setattr(xla, "CODES_AT_ONCE", tiles_at_once * xla.TILE_GROUPS * G * H)
    jax.clear_caches()  # a program for these shapes may be there, with pieces as they were before
    q, view, position, mode = make_case(2)
    got = jax.jit(lambda *inputs: decode_attention(*inputs, impl="xla", **OPTIONS))(q, view, position, mode)
    np.testing.assert_allclose(got, attend(q, view, position, mode, **OPTIONS, impl="reference"), atol=2e-5, rtol=1e-5)


def test_groups_out_of_sight_are_never_read():
    """The table of a sparse head may name any page for them: pages of NaN change nothing."""
    q, view, position, _ = make_case(1)
    sparse = jnp.ones((B, K), jnp.int32)
    wanted = attend(q, view, position, sparse, **OPTIONS)
    spare = np.setdiff1d(np.arange(2 * B * K * J), view.table_BKJ)[0]
    pages = view.pages
    poison = pages._replace(**{name: getattr(pages, name).at[spare].set(jnp.nan) for name in ("k_zero", "v_scale")})
    # Queries at 179 and 76: sinks 0..15 and local tokens from 144 and 48 on.
    unseen = np.array([[0, 1, 1, 1, 0, 1], [0, 0, 1, 1, 1, 1]], bool)[:, None]
    table = jnp.where(unseen, spare, view.table_BKJ)
    poisoned = view._replace(pages=poison, table_BKJ=table)
    got = attend(q, poisoned, position, sparse, **OPTIONS)
    np.testing.assert_array_equal(got, wanted)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"q": jnp.ones((B, 9, N, H))}, "9 queries; wanted at most 8"),
        ({"q": jnp.ones((B, 1, 3, H))}, "query heads must be a multiple"),
        ({"q": jnp.ones((B, 1, N, 2 * H))}, "exact_k has shape"),
        ({"position": jnp.zeros((3,), jnp.int32)}, "position has shape (3,)"),
        ({"mode": jnp.full((B, K), 2)}, "mode holds 2"),
        ({"local_blocks": 0}, "local_blocks is 0"),
    ],
)
def test_bad_input_is_named(change, words):
    q, view, position, mode = make_case(1)
    arguments = {"q": q, "position": position, "mode": mode} | change
    with pytest.raises(ValueError) as error:
        decode_attention(
            arguments.pop("q"), view, arguments.pop("position"), arguments.pop("mode"), **OPTIONS | arguments
        )
    assert words in str(error.value)


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize(("pages", "groups"), [(1, 0), (0, 0), (0, 2)])
def test_a_cache_without_groups_attends_to_its_exact_tokens(pages, groups, impl):
    normal = np.random.default_rng(0).standard_normal
    blank = make_pages(jnp.zeros((1, G, H)), jnp.zeros((1, G, H)), jnp.zeros((1, G), bool))
    blank = jax.tree.map(lambda x: x[:pages], blank)
    k, v, q = (jnp.asarray(normal(shape), jnp.float32) for shape in ((1, K, 3, H), (1, K, 3, H), (1, 1, N, H)))
    pos = jnp.broadcast_to(jnp.arange(3), (1, K, 3))
    view = CacheView(blank, jnp.zeros((1, K, groups), jnp.int32), jnp.zeros((1,), jnp.int32), k, v, pos)
    got = decode_attention(q, view, jnp.array([2]), jnp.zeros((1, K), jnp.int32), impl=impl)
    scores = jnp.einsum("bkgh,bkeh->bkge", q.reshape(1, K, N // K, H), k) / H**0.5
    want = jnp.einsum("bkge,bkeh->bkgh", jax.nn.softmax(scores), v).reshape(1, 1, N, H)
    np.testing.assert_allclose(got, want, atol=1e-5)
    for held in (G * (groups + 1), G // 2, -G):
        with pytest.raises(ValueError, match="wanted multiples of the group"):
            short = view._replace(quantized_B=jnp.array([held]))
            decode_attention(q, short, jnp.array([2]), jnp.zeros((1, K), jnp.int32), impl=impl)
