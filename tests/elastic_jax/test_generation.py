import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from tiny import random_ids, tiny_model

from elastic_jax.errors import ConfigError, ShapeError
from elastic_jax.generation import bucket, decode, generate, make_cache
from elastic_jax.kv_cache import CacheConfig
from elastic_jax.kv_cache.pages import tree_bytes
from elastic_jax.sampling import RowSampling, Sampling


@nnx.jit
def logits_of(model, rows, lengths, modes):
    return model(rows, lengths=lengths, routing=modes).logits


def without_cache(model, generation, ids, lengths):
    """Greedy tokens of one forward pass over prompt + generated text under the same routing."""
    steps = generation.tokens.shape[1]
    rows = np.zeros((len(lengths), ids.shape[1] + steps), np.int32)
    for b, length in enumerate(lengths):
        rows[b, : length + steps] = np.concatenate([ids[b, :length], generation.tokens[b]])
    logits = logits_of(model, rows, np.asarray(lengths) + steps, generation.routing.mode)
    return np.stack([np.argmax(logits[b, n - 1 : n - 1 + steps], -1) for b, n in enumerate(lengths)])


@pytest.mark.parametrize("routing", [None, "full", "sparse"])
def test_rows_of_different_length_equal_the_forward_pass_without_cache(model, routing):
    ids, lengths = random_ids((2, 100)), [100, 61]
    generation = generate(model, ids, lengths=lengths, max_new_tokens=24, routing=routing)
    np.testing.assert_array_equal(generation.tokens, without_cache(model, generation, ids, lengths))
    np.testing.assert_array_equal(generation.lengths, [24, 24])


def test_sliding_window_holds_while_decoding():
    model, ids, lengths = tiny_model(sliding_window=20), random_ids((1, 60)), [60]
    generation = generate(model, ids, max_new_tokens=24)
    np.testing.assert_array_equal(generation.tokens, without_cache(model, generation, ids, lengths))


def test_dense_decoding_gives_sparse_heads_the_whole_past(model):
    ids = random_ids((2, 100))
    sparse = generate(model, ids, max_new_tokens=24, routing="sparse")
    dense = generate(model, ids, max_new_tokens=24, routing="sparse", cache=CacheConfig(sparse_decode=False))
    np.testing.assert_array_equal(sparse.tokens[:, 0], dense.tokens[:, 0])
    assert (sparse.tokens != dense.tokens).any()


def test_a_stop_token_ends_its_row_only(model):
    ids = random_ids((2, 100))
    free = generate(model, ids, max_new_tokens=24)
    stop = int(free.tokens[0, 5])
    first = [int(np.argmax(row == stop)) if (row == stop).any() else 23 for row in np.asarray(free.tokens)]
    stopped = generate(model, ids, max_new_tokens=np.int64(24), stop_tokens=[stop])  # of any library
    np.testing.assert_array_equal(stopped.lengths, [n + 1 for n in first])
    for b, n in enumerate(first):
        np.testing.assert_array_equal(stopped.tokens[b, : n + 1], free.tokens[b, : n + 1])
        assert (stopped.tokens[b, n + 1 :] == 0).all()


def test_sampling_repeats_with_its_seed_and_the_cache_is_counted(model):
    ids, sampling = random_ids((2, 100)), Sampling(temperature=1.0, top_k=20, top_p=0.9)
    a, b, c = (generate(model, ids, max_new_tokens=24, sampling=sampling, seed=seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(a.tokens, b.tokens)
    assert (a.tokens != c.tokens).any()
    config = model.config
    assert a.cache_bytes == 2 * 4 * config.num_layers * 2 * config.num_kv_heads * bucket(124) * config.head_dim


def test_eight_bits_answer_like_the_forward_pass_without_cache():
    """Prompts of different length whose groups are flushed while decoding; rare near-ties may fall otherwise."""
    model, ids, lengths = tiny_model(), random_ids((2, 100)), [100, 61]
    cache = CacheConfig(bits=8, key_transform="hadamard+token_norm", group=32, residual=8, untraced_layers=1)
    generation = generate(model, ids, lengths=jnp.array(lengths), max_new_tokens=48, cache=cache)
    assert (generation.tokens == without_cache(model, generation, ids, lengths)).mean() > 0.9


def test_groups_that_do_not_fit_the_heads_are_refused_before_any_work():
    with pytest.raises(ConfigError, match="does not divide the head dimension 48"):
        generate(tiny_model(head_dim=48), random_ids((1, 8)), max_new_tokens=1, cache=CacheConfig(bits=2, group=32))


@pytest.mark.parametrize("tokens", [1, 127, 128, 129, 1000, 2049, 8000, 100_000])
def test_buckets_waste_at_most_an_eighth_beyond_one_block(tokens):
    assert tokens <= bucket(tokens) <= max(tokens + 127, tokens * 1.125 + 1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"input_ids_BT": np.zeros((1, 0), int)}, "at least one row and one token"),
        ({"input_ids_BT": np.zeros((0, 8), int)}, "at least one row and one token"),
        ({"lengths": [0]}, "from 1 to 8"),
        ({"lengths": [9]}, "from 1 to 8"),
        ({"lengths": [2.5]}, "lengths holds float64; want whole numbers"),
        ({"input_ids_BT": [[1, 2], [3]]}, "rows of input_ids have different lengths"),
        ({"input_ids_BT": [[1.0, 2.0]]}, "input_ids holds float64; want whole numbers"),
        ({"input_ids_BT": [[1, None]]}, "input_ids holds object; want whole numbers"),
        ({"max_new_tokens": 600}, "608 positions; the model has 512"),
        ({"max_new_tokens": 0}, "1 or more"),
        ({"max_new_tokens": True}, "max_new_tokens is True; want a whole number"),
        ({"max_new_tokens": 2.5}, "max_new_tokens is 2.5; want a whole number"),
        ({"input_ids_BT": np.full((1, 8), 64)}, "Wrong tokenizer"),
        ({"stop_tokens": 2}, "want a sequence of token ids"),
        ({"stop_tokens": [None]}, "a token id of stop_tokens is None"),
    ],
)
def test_bad_prompts_are_refused_before_any_work(model, arguments, message):
    with pytest.raises(ShapeError, match=message):
        generate(model, **{"input_ids_BT": np.zeros((1, 8), int), "max_new_tokens": 4, **arguments})


@pytest.mark.parametrize("router_bias", [float("nan"), float("inf"), "1", None])
def test_a_router_bias_that_is_no_finite_number_is_refused(model, router_bias):
    with pytest.raises(ConfigError, match="router_bias is .*; want a finite number"):
        generate(model, jnp.ones((1, 4), jnp.int32), max_new_tokens=1, router_bias=router_bias)


@pytest.mark.parametrize("seed", [-1, 2**31, 2**63, 1.5, True, "1"])
def test_seeds_that_no_sampler_takes_are_refused(model, seed):
    with pytest.raises(ConfigError, match=r"seed is .*; want a whole number from 0 to 2\*\*31 - 1"):
        generate(model, jnp.ones((1, 4), jnp.int32), max_new_tokens=1, seed=seed)


@pytest.mark.parametrize("bits", [2, 16])
def test_decoding_grows_the_cache_in_place(bits):
    """All of its arrays are donated, and what the steps need besides is far less than a copy."""
    model, B, T = tiny_model(num_layers=16, max_position_embeddings=8192), 8, 4096
    kv = (jax.ShapeDtypeStruct((16, B, T, 2, 8), jnp.float32),) * 2
    mode, lengths = jnp.zeros((16, B, 2), jnp.int8), np.full((B,), T - 64)
    state = jax.eval_shape(lambda kv: make_cache(CacheConfig(bits=bits), model.config, kv, lengths, mode, 64), kv)
    lowered = decode.lower(
        model, state, jnp.zeros((B, 64)), jax.random.key(0), jnp.zeros((8,), jnp.int32), RowSampling.of(Sampling()),
        jnp.int32(32), jnp.int32(0), width=128,
    )  # fmt: skip
    memory = lowered.compile().memory_analysis()
    size = tree_bytes(state)
    assert memory.alias_size_in_bytes >= size
    assert memory.temp_size_in_bytes < size / 3


@pytest.mark.parametrize(
    ("bits", "limit", "words"),
    [
        (
            16,
            0.3,
            "needs 393216 bytes (0.4 MiB); the limit is 0.3 MiB. What would fit: cache bits 8 (0.3 MiB), or 3 "
            "row(s) of that length, or prompt and new tokens up to 256 in every row.",
        ),
        (
            2,
            0.1,
            "4 row(s) of up to 300 tokens needs 239680 bytes (0.2 MiB); the limit is 0.1 MiB. What would fit: 1 row",
        ),
        (2, 0.05, "What would fit: one row of up to 159 tokens."),
        (2, 1e-4, "Not even one row of one token would fit."),
    ],
)
def test_a_request_beyond_the_cache_limit_is_refused_with_what_would_fit(model, bits, limit, words):
    ids = random_ids((4, 260))
    with pytest.raises(ConfigError) as error:
        generate(model, ids, max_new_tokens=40, cache=CacheConfig(bits=bits), cache_mib=limit)
    assert words in str(error.value)


def test_the_cache_limit_counts_heads_as_routed_and_what_is_allocated(model):
    ids = random_ids((2, 400))
    cache = CacheConfig(bits=2, group=32)
    free = generate(model, ids, max_new_tokens=8, cache=cache, routing="sparse")
    mib = free.cache_bytes / 2**20
    held = generate(model, ids, max_new_tokens=8, cache=cache, routing="sparse", cache_mib=mib)
    np.testing.assert_array_equal(held.tokens, free.tokens)
    for routing in ("full", None):
        with pytest.raises(ConfigError, match="needs"):
            generate(model, ids, max_new_tokens=8, cache=cache, routing=routing, cache_mib=mib)
