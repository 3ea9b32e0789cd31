"""The quantised cache: same state however the tokens came, same attention as the dense cache, bytes as promised."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from elastic_jax.errors import ConfigError, ShapeError
from elastic_jax.kv_cache import CacheConfig
from elastic_jax.kv_cache.dense import DenseCache
from elastic_jax.kv_cache.pages import plan_pages, quantized_tokens, round_up, tree_bytes
from elastic_jax.kv_cache.quantized import QuantizedCache, hadamard, ring_positions
from elastic_jax.kv_cache.size import quantized_bytes
from pallas_kernels.schedule import AttentionSpec

L, B, T, K, N, H = 2, 3, 256, 2, 4, 8
SPEC = AttentionSpec(1, 3, 16, None, H**-0.5)
CONFIG = CacheConfig(bits=2, group=32, residual=8, outliers=2, outlier_store=6, untraced_layers=1)
MODE = np.array([[[0, 1], [1, 0], [1, 1]], [[0, 0], [1, 0], [0, 1]]], np.int8)


def random_kv(seed=0):
    """Keys with large nearly constant channels, and here and there a token that lacks them."""
    rng = np.random.default_rng(seed)
    k, v = rng.standard_normal((2, L, B, T, K, H), np.float32)
    k[..., :2] += 6
    k[rng.random(k.shape[:-1]) < 0.05] *= 0.05
    return jnp.asarray(k), jnp.asarray(v)


def prefill(kv, lengths, config=CONFIG, mode=MODE, store_all=False, spec=SPEC):
    lengths = np.asarray(lengths)
    plan = plan_pages(np.zeros_like(mode) if store_all else mode, np.full(B, T), config, spec)
    return QuantizedCache.from_prefill(kv, jnp.asarray(lengths), jnp.asarray(mode), plan, config, spec)


@jax.jit
def decode(cache, kv, steps):
    """Feeds `steps` tokens of every row, each where its row is."""

    def step(_, cache):
        tokens = [x[:, jnp.arange(B), cache.lengths][:, :, None] for x in kv]
        for layer in range(L):
            cache = cache.write(jnp.int32(layer), tokens[0][layer], tokens[1][layer])
        return cache.advance()

    return jax.lax.fori_loop(0, steps, step, cache)


def settle(cache):
    """Flushes the rows that still wait for their turn."""
    while ((cache.lengths - cache.quantized) >= cache.config.residual + cache.config.group).any():
        cache = flush(cache, jnp.argmax(cache.lengths - cache.quantized))
    return cache


flush = jax.jit(QuantizedCache.flush)


def contents(cache, row):
    """Everything a row holds, by position; stale slots left out."""
    start, end = int(cache.quantized[row]), int(cache.lengths[row])
    kept = cache.outlier_pos.shape[3]
    slots = kept + np.arange(start, end) % cache.ring
    groups = start // cache.config.group
    pages = [np.asarray(x)[np.asarray(cache.table)[:, row, :, :groups]] for x in jax.tree.leaves(cache.pages)]
    empty = np.asarray(cache.outlier_pos)[:, row, :, :, None] < 0
    return [
        start,
        end,
        *pages,
        *(np.asarray(x)[:, row][:, :, slots] for x in (cache.exact_k, cache.exact_v)),
        *(np.where(empty, 0, np.asarray(x)[:, row][:, :, :kept]) for x in (cache.exact_k, cache.exact_v)),
        *(np.asarray(x)[:, row] for x in (cache.outlier_pos, cache.score, cache.frozen)),
    ]


def assert_same(a, b):
    for row in range(B):
        for x, y in zip(contents(a, row), contents(b, row), strict=True):
            np.testing.assert_array_equal(x, y)


@settings(max_examples=12)
@given(
    lengths=st.lists(st.integers(1, 130), min_size=B, max_size=B),
    steps=st.integers(0, 120),
    seed=st.integers(0, 5),
)
def test_state_depends_on_the_tokens_and_not_on_how_they_came(lengths, steps, seed):
    """Prefill then decode = prefill of everything, bit for bit: rows of other lengths, waiting rows, frozen heads."""
    kv = random_kv(seed)
    grown = settle(decode(prefill(kv, lengths), kv, steps))
    assert_same(grown, prefill(kv, np.asarray(lengths) + steps))


@settings(max_examples=12)
@given(
    lengths=st.lists(st.integers(1, T), min_size=B, max_size=B),
    order=st.permutations(range(B)),
    padding=st.sampled_from([0.0, 1e-3, 1e6, np.nan]),
)
def test_a_row_knows_nothing_of_padding_and_of_its_neighbours(lengths, order, padding):
    kv, lengths, order = random_kv(1), np.array(lengths), np.array(order)
    held = (np.arange(T) < lengths[:, None])[None, :, :, None, None]
    shuffled = [jnp.where(held, x, padding)[:, order] for x in kv]
    cache, moved = prefill(kv, lengths), prefill(shuffled, lengths[order], mode=MODE[:, order])
    for new, row in enumerate(order):
        for x, y in zip(contents(cache, row), contents(moved, new), strict=True):
            np.testing.assert_array_equal(x, y)


@settings(max_examples=8)
@given(seed=st.integers(0, 2**32 - 1), length=st.integers(32, T))
def test_without_outliers_the_pages_are_those_of_plain_grouped_quantisation(seed, length):
    """Codes, scales and zeros bit for bit: keys by channel, values by token (KIVI), metadata rounded to float16."""
    kv, group = random_kv(seed), CONFIG.group
    plain = dataclasses.replace(CONFIG, outliers=0, residual=0, key_transform="none")
    cache = prefill(kv, [length] * B, plain, np.zeros_like(MODE))
    groups = length // group
    pages = jax.tree.map(lambda x: np.asarray(x)[np.asarray(cache.table)[..., :groups]], cache.pages)
    assert not pages.holes.any()
    for x, axis, codes, scale, zero in (
        (kv[0], -2, pages.k_codes, pages.k_scale, pages.k_zero),
        (kv[1], -1, pages.v_codes, pages.v_scale[..., 0], pages.v_zero[..., 0]),
    ):
        x = np.asarray(x)[:, :, : groups * group].reshape(L, B, groups, group, K, H).transpose(0, 1, 4, 2, 3, 5)
        z = x.min(axis).astype(np.float16)
        s = ((x.max(axis) - x.min(axis)) / np.float32(3)).astype(np.float16)
        np.testing.assert_array_equal(zero, z)
        np.testing.assert_array_equal(scale, s)
        s, z = (np.expand_dims(y.astype(np.float32), axis) for y in (s, z))
        wanted = np.rint(np.clip((x - z) / s, 0, 3))
        # Word r of a channel holds tokens r, r + 2, r + 4 and so on, least significant bits first.
        shifts = np.arange(0, 32, 2, dtype=np.uint32)[:, None, None]
        np.testing.assert_array_equal(((codes[..., None, :, :] >> shifts) & 3).reshape(wanted.shape), wanted)


@pytest.mark.parametrize(
    ("residual", "wanted"),
    [(32, [0, 0, 0, 128, 128, 256, 384, 896, 3968, 8064]), (0, [0, 0, 128, 128, 128, 256, 384, 896, 4096, 8192])],
)
def test_schedule_of_published_sizes(residual, wanted):
    """How many tokens are packed; without a residual, how many keys KIVI packs when its own is one group."""
    lengths = np.array([1, 32, 159, 160, 161, 288, 500, 1000, 4096, 8192])
    quantized = quantized_tokens(lengths, CacheConfig(bits=2, residual=residual))
    np.testing.assert_array_equal(quantized, wanted)
    if residual:
        np.testing.assert_array_equal(lengths - quantized, [1, 32, 159, 32, 33, 32, 116, 104, 128, 128])


@settings(max_examples=6)
@given(
    lengths=st.lists(st.integers(1, 150), min_size=B, max_size=B),
    steps=st.integers(0, 100),
    seed=st.integers(0, 2**32 - 1),
)
def test_every_token_is_in_exactly_one_place(lengths, steps, seed):
    kv = random_kv(seed)
    cache = settle(decode(prefill(kv, lengths, mode=np.zeros_like(MODE)), kv, steps))
    for row in range(B):
        n, n_q = int(cache.lengths[row]), int(cache.quantized[row])
        pages = np.asarray(cache.pages.holes)[np.asarray(cache.table)[:, row, :, : n_q // 32], 0, 0]
        holes = (pages[..., None] >> np.arange(32, dtype=np.uint32)) & 1
        for layer, head in np.ndindex(L, K):
            exact = cache.outlier_pos[layer, row, head]
            exact = np.sort(exact[exact >= 0])
            np.testing.assert_array_equal(np.flatnonzero(holes[layer, head]), exact)
            assert (len(exact) > 0) == (layer > 0 and n_q > 0)
            assert len(exact) == len(set(exact.tolist()))
            assert n == n_q - holes[layer, head].sum() + len(exact) + (n - n_q)
        ring = np.asarray(ring_positions(cache.lengths - 1, cache.ring))[row]
        assert set(range(n_q, n)) <= set(ring.tolist())


@pytest.mark.parametrize("transform", ["none", "hadamard+token_norm"])
def test_eight_bits_attend_like_the_dense_cache(transform):
    kv, lengths = random_kv(2), [150, 61, 3]
    config = dataclasses.replace(CONFIG, bits=8, key_transform=transform)
    quantized = decode(prefill(kv, lengths, config), kv, 50)
    dense = decode(DenseCache.from_prefill(kv, jnp.asarray(lengths), jnp.asarray(MODE), T, SPEC), kv, 50)
    q = jnp.asarray(np.random.default_rng(3).standard_normal((B, 1, N, H)), jnp.float32)
    for layer in range(L):
        new = [x[layer, jnp.arange(B), dense.lengths][:, None] for x in kv]
        wanted = dense.write(layer, *new).attend(layer, q)
        np.testing.assert_allclose(quantized.write(layer, *new).attend(layer, q), wanted, atol=0.05)


def test_sparse_heads_need_no_more_than_their_ring():
    """A head whose old groups are overwritten attends as one that keeps them all."""
    kv, lengths = random_kv(4), [200, 130, 90]
    mode = np.ones_like(MODE)
    slim, wide = (decode(prefill(kv, lengths, mode=mode, store_all=x), kv, 41) for x in (False, True))
    assert slim.pages.k_codes.shape[0] < wide.pages.k_codes.shape[0]
    q = jnp.asarray(np.random.default_rng(5).standard_normal((B, 1, N, H)), jnp.float32)
    for layer in range(L):
        np.testing.assert_array_equal(slim.attend(layer, q), wide.attend(layer, q))


@pytest.mark.parametrize(("tokens", "sparse_heads", "ratio"), [(16_384, 0, 6.4), (131_072, 13, 17)])
def test_bytes_against_bfloat16(tokens, sparse_heads, ratio):
    """Head dim 128; every head full, or 13 of 20 sparse."""
    mode, spec = (np.arange(20) < sparse_heads).astype(np.int8), AttentionSpec(1, 16, 128, None, 128**-0.5)
    counted = quantized_bytes(mode[None, None], np.array([tokens]), 128, 2, CacheConfig(bits=2), spec)
    assert 2 * tokens * 20 * 128 * 2 / counted >= ratio


@settings(max_examples=15)
@given(
    bits=st.sampled_from([2, 4, 8]),
    group=st.sampled_from([32, 64, 128]),
    head_dim=st.sampled_from([32, 64, 128, 256]),
    dtype=st.sampled_from([jnp.bfloat16, jnp.float32]),
    transform=st.sampled_from(["none", "hadamard", "hadamard+token_norm"]),
    lengths=st.lists(st.integers(1, 3000), min_size=1, max_size=5),
    seed=st.integers(0, 99),
)
def test_bytes_are_those_counted_beforehand(bits, group, head_dim, dtype, transform, lengths, seed):
    config = CacheConfig(bits=bits, group=group, key_transform=transform)
    spec, lengths = AttentionSpec(1, 4, 128, None, 1.0), np.array(lengths)
    mode = np.random.default_rng(seed).integers(0, 2, (3, len(lengths), 2)).astype(np.int8)
    kv = (jax.ShapeDtypeStruct((3, len(lengths), int(lengths.max()), 2, head_dim), dtype),) * 2
    plan = plan_pages(mode, lengths, config, spec)
    cache = jax.eval_shape(
        lambda kv: QuantizedCache.from_prefill(kv, jnp.asarray(lengths), jnp.asarray(mode), plan, config, spec), kv
    )
    counted = quantized_bytes(mode, lengths, head_dim, jnp.dtype(dtype).itemsize, config, spec)
    assert counted == tree_bytes(cache)


def documented_bytes(n, head_dim, itemsize, config):
    """One full head of one row, by the table in docs/cache.md."""
    G, H, b = config.group, head_dim, config.bits
    page = 2 * G * H * b / 8 + 4 * H + 4 * G * H / min(G, H) + G / 8
    exact = (config.outliers + config.outlier_store + config.residual + G) * 2 * H * itemsize
    table = 4 * (n - config.residual) // G + 4 * (config.outliers + config.outlier_store) + 4 * config.outliers + 2
    return (n - config.residual) // G * page + exact + table


@pytest.mark.parametrize("tokens", [2048, 4096, 16_384, 131_072])
def test_the_documented_formula_is_within_one_percent(tokens):
    """256 heads: a pool that needs no rounding up."""
    config, spec, heads = CacheConfig(bits=2), AttentionSpec(1, 16, 128, None, 1.0), 256
    for head_dim in (64, 128):
        counted = quantized_bytes(np.zeros((1, 1, heads), np.int8), np.array([tokens]), head_dim, 2, config, spec)
        assert abs(counted / (heads * documented_bytes(tokens, head_dim, 2, config)) - 1) < 0.01


@pytest.mark.parametrize(
    ("lengths", "room", "message"),
    [
        ([100, 300, 20], 300, "a row has 300 tokens, but keys and values only 256"),
        ([100, 250, 20], 130, "a row has 250 tokens, but the tables hold 3 groups of 32, for 135 tokens at most"),
    ],
)
def test_rows_longer_than_keys_or_tables_are_refused(lengths, room, message):
    plan = plan_pages(MODE, np.full(B, room), CONFIG, SPEC)
    with pytest.raises(ShapeError, match=message):
        QuantizedCache.from_prefill(random_kv(), jnp.array(lengths), jnp.asarray(MODE), plan, CONFIG, SPEC)


def test_plans_waste_little_and_have_few_sizes():
    rng, spec = np.random.default_rng(0), AttentionSpec(1, 16, 128, None, 1.0)
    for length in range(100, 16_000, 500):
        mode = rng.integers(0, 2, (12, 2, 4))
        plan = plan_pages(mode, np.array([length, length // 2]), CacheConfig(bits=2), spec)
        used = plan.table.max() + 1
        assert used <= plan.pages <= used * 33 / 32
    for parts in (8, 32):
        assert all(len({round_up(n, parts=parts) for n in range(s, 2 * s)}) <= parts + 1 for s in range(1, 500, 7))


@pytest.mark.parametrize("width", [8, 12, 7])
def test_rotation_is_orthogonal_and_its_own_inverse(width):
    x = jnp.asarray(np.random.default_rng(0).standard_normal((5, width)), jnp.float32)
    rotate = jax.jit(hadamard)
    y = rotate(x)
    np.testing.assert_allclose(rotate(y), x, atol=1e-6)
    np.testing.assert_allclose(y @ y.T, x @ x.T, atol=1e-5)
    if width == 8:
        np.testing.assert_allclose(np.abs(rotate(jnp.eye(8))), 8**-0.5, rtol=1e-6)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"bits": 3}, "bits is 3; want 2, 4, 8 or 16"),
        ({"group": 48}, "group is 48 tokens; want a multiple of 32"),
        ({"outliers": 128}, "outliers is 128 in groups of 128"),
        ({"residual": -1}, "residual is -1; want a whole number, 0 or more"),
        ({"residual": 1.5}, "residual is 1.5; want a whole number"),
        ({"group": 64.0}, "group is 64.0; want a whole number"),
        ({"bits": "2"}, "bits is '2'; want a whole number"),
        ({"key_transform": "fft"}, "key_transform is 'fft'; want one of none, hadamard"),
        ({"outlier_stat": "max"}, "want one of l1, l2"),
    ],
)
def test_bad_settings_are_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        CacheConfig(**{"bits": 2, **changes})


def test_group_that_does_not_divide_the_head_dimension_is_refused():
    CacheConfig(bits=2, group=128).check_head_dim(64)
    with pytest.raises(ConfigError, match="group 64 does not divide the head dimension 80"):
        CacheConfig(bits=2, group=64).check_head_dim(80)
