"""Decode attention: a worked example, the loop over groups against the definition, and what is never read."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from decode_cases import DecodeCase, make_decode_inputs, quantize
from hypothesis import given, settings
from hypothesis import strategies as st

from pallas_kernels import CacheView, decode_attention
from pallas_kernels.decode_attention import xla

IMPLS = ["reference", "xla"]
B, N, K, H, G, J = 2, 4, 2, 8, 32, 6

attend = jax.jit(
    decode_attention, static_argnames=("sink_blocks", "local_blocks", "block_size", "window", "scale", "impl")
)


def small(**changes) -> DecodeCase:
    """A case of two rows of 180 and 77 tokens, of which 160 and 64 are in groups."""
    shape = {"lengths": (180, 77), "head_dim": H, "channels": 4, "group": G, "block": 16, "local": 3}
    return DecodeCase("", **{**shape, "modes": (0, 1, 1, 0), "pages": J, **changes})


def assert_defined(inputs, got=None, **options) -> None:
    got = attend(*inputs, **options) if got is None else got
    np.testing.assert_allclose(got, attend(*inputs, **options, impl="reference"), atol=2e-5, rtol=1e-5)


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
        quantize(keys[None], values[None], holes[None], channels=4, metadata_dtype=jnp.float32),
        jnp.zeros((1, 1, 1), jnp.int32),
        jnp.array([32]),
        *(jnp.asarray(x)[None, None] for x in (exact_k, exact_v, pos)),
    )
    q = jnp.array([0.5, -1, 2, 0.25]).reshape(1, 1, 1, 4)
    out = attend(q, view, jnp.array([33]), jnp.zeros((1, 1), jnp.int32), impl=impl)
    np.testing.assert_allclose(out.ravel(), wanted, atol=2e-6)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"queries": 8, "bits": 4, "norm": True},
        {"queries": 3, "bits": 8, "block": 24, "local": 2, "sink": 3},
        {"queries": 2, "lengths": (20, 77), "window": 60},
    ],
)
def test_loop_over_groups_equals_the_definition(changes):
    case = small(**changes)
    assert_defined(make_decode_inputs(case), **case.options())


@settings(max_examples=15)
@given(
    lengths=st.tuples(*[st.integers(3, J * G)] * 2),
    modes=st.tuples(*[st.integers(0, 1)] * 4),
    seed=st.integers(0, 99),
)
def test_any_mixture_of_lengths_and_heads_equals_the_definition(lengths, modes, seed):
    case = small(queries=3, lengths=lengths, modes=modes)
    assert_defined(make_decode_inputs(case, seed=seed), **case.options())


@pytest.mark.parametrize("tiles_at_once", [1, 3])
def test_a_long_list_of_tiles_is_taken_in_pieces(tiles_at_once, monkeypatch):
    """Five tiles: one at a time, and in pieces of three of which the last is not full."""
    monkeypatch.setattr(xla, "CODES_AT_ONCE", tiles_at_once * xla.TILE_GROUPS * G * H)
    jax.clear_caches()  # a program for these shapes may be there, with pieces as they were before
    inputs, options = make_decode_inputs(small(queries=2)), small().options()
    got = jax.jit(lambda *inputs: decode_attention(*inputs, impl="xla", **options))(*inputs)
    assert_defined(inputs, got, **options)


@pytest.mark.parametrize("row", [0, 1])
def test_numbers_that_are_not_finite_stay_in_their_row(row):
    q, *rest = make_decode_inputs(small())
    out = attend(q.at[row].set(jnp.nan), *rest, **small().options())
    np.testing.assert_array_equal(out[1 - row], attend(q, *rest, **small().options())[1 - row])


def test_groups_out_of_sight_are_never_read():
    """The table of a sparse head may name any page for them: those that no table names hold NaN."""
    case = small(modes=(1,))
    q, view, position, sparse = make_decode_inputs(case)
    spare = np.setdiff1d(np.arange(2 * B * K * J), view.table_BKJ)[0]
    # Queries at 179 and 76: sinks 0..15 and local tokens from 144 and 48 on.
    unseen = np.array([[0, 1, 1, 1, 0, 1], [0, 0, 1, 1, 1, 1]], bool)[:, None]
    poisoned = view._replace(table_BKJ=jnp.where(unseen, spare, view.table_BKJ))
    got = attend(q, poisoned, position, sparse, **case.options())
    np.testing.assert_array_equal(got, attend(q, view, position, sparse, **case.options()))


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
    q, view, position, mode = make_decode_inputs(small())
    arguments = {"q": q, "position": position, "mode": mode} | change
    with pytest.raises(ValueError) as error:
        decode_attention(
            arguments.pop("q"), view, arguments.pop("position"), arguments.pop("mode"), **small().options() | arguments
        )
    assert words in str(error.value)


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize(("pages", "groups"), [(1, 0), (0, 0), (0, 2)])
def test_a_cache_without_groups_attends_to_its_exact_tokens(pages, groups, impl):
    normal = np.random.default_rng(0).standard_normal
    blank = quantize(jnp.zeros((1, G, H)), jnp.zeros((1, G, H)), jnp.zeros((1, G), bool), channels=4)
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
