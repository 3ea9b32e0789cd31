"""Static heads: calibrated heads decide in a model, in `generate`, in rewards and in shared prompts."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import CONFIG, HEADS, tiny_model

from elastic_jax import generate
from elastic_jax.errors import ConfigError
from elastic_jax.generation import prefill
from elastic_jax.int8_linear import quantize_layers
from elastic_jax.kv_cache import CacheConfig
from elastic_jax.reward import ElasticRewardModel
from elastic_jax.shared_prefix import separate_rows_hidden, shared_prefix_hidden

MODES = np.array([[1, 0], [0, 1]])
IDS = jnp.asarray(np.random.default_rng(0).integers(0, 64, (2, 100)))
LENGTHS = jnp.array([100, 71])


@pytest.fixture
def model():
    made = tiny_model()
    made.use_heads(HEADS)
    return made


def imposed(modes_LK=MODES, rows: int = 2) -> jax.Array:
    return jnp.repeat(jnp.asarray(modes_LK)[:, None], rows, axis=1)


def test_heads_decide_unless_something_else_is_asked_for(model):
    bare = tiny_model()
    want = bare(IDS, lengths=LENGTHS, routing=imposed())
    for routing in (None, "heads"):
        got = model(IDS, lengths=LENGTHS, routing=routing)
        np.testing.assert_array_equal(got.routing.mode, imposed())
        np.testing.assert_array_equal(got.logits, want.logits)
    np.testing.assert_array_equal(bare(IDS, lengths=LENGTHS, routing=HEADS).logits, want.logits)
    for routing in ("full", "sparse", "routers"):
        want = bare(IDS, lengths=LENGTHS, routing=routing)
        np.testing.assert_array_equal(model(IDS, lengths=LENGTHS, routing=routing).logits, want.logits)
        assert (np.asarray(want.routing.mode) != np.asarray(imposed())).any(), "the example shows nothing"
    model.use_heads(None)
    np.testing.assert_array_equal(model(IDS, lengths=LENGTHS).logits, want.logits)


def test_heads_decide_for_packed_sequences(model):
    segments = jnp.asarray([[1] * 48 + [2] * 40 + [0] * 8])
    got = model(IDS[:1, :96], segment_ids=segments)
    np.testing.assert_array_equal(got.routing.mode, np.broadcast_to(MODES[:, None, None], got.routing.mode.shape))
    want = tiny_model()(IDS[:1, :96], segment_ids=segments, routing=HEADS)
    np.testing.assert_array_equal(got.logits, want.logits)


@pytest.mark.parametrize("bits", [16, 4])
def test_generation_keeps_the_heads(model, bits):
    cache = CacheConfig(bits=bits, group=32, residual=8)
    told = {}
    for routing in (None, "heads", "routers", HEADS):
        told[routing] = generate(
            model, IDS, lengths=LENGTHS, max_new_tokens=12, cache=cache, routing=routing, stop_tokens=()
        )
    by_hand = generate(
        tiny_model(), IDS, lengths=LENGTHS, max_new_tokens=12, cache=cache, routing=imposed(), stop_tokens=()
    )
    for routing in (None, "heads", HEADS):
        np.testing.assert_array_equal(told[routing].tokens, by_hand.tokens)
        assert told[routing].cache_bytes == by_hand.cache_bytes
    routed = generate(tiny_model(), IDS, lengths=LENGTHS, max_new_tokens=12, cache=cache, stop_tokens=())
    np.testing.assert_array_equal(told["routers"].tokens, routed.tokens)


def test_another_cut_compiles_nothing_anew(model):
    arguments = (IDS, LENGTHS, None)
    first = prefill(model, *arguments)
    compiled = prefill._run._cache_size()
    model.use_heads(HEADS.at(0.75))
    second = prefill(model, *arguments)
    assert prefill._run._cache_size() == compiled
    assert np.asarray(first.routing.msr()).tolist() == [0.5, 0.5]
    assert np.asarray(second.routing.msr()).tolist() == [0.75, 0.75]


def test_what_a_model_does_not_have_is_refused_by_name(model):
    bare = tiny_model()
    with pytest.raises(ConfigError, match='routing "heads" needs calibrated heads.*--heads'):
        bare(IDS, routing="heads")
    model.fresh_routers = True
    with pytest.raises(ConfigError, match='routing "routers" needs trained routers'):
        generate(model, IDS, max_new_tokens=1, routing="routers")
    np.testing.assert_array_equal(model(IDS).routing.mode, imposed())


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"order": np.arange(6).reshape(2, 3)}, "2 layers of 3 KV heads; this model has 2 layers of 2 KV heads"),
        ({"router": dataclasses.replace(CONFIG.router, local_blocks=4)}, "local_blocks is 2, the heads have 4"),
        (
            {"router": dataclasses.replace(CONFIG.router, pattern="fa-xa")},
            "pattern is 'fa-ssa', the heads have 'fa-xa'",
        ),
    ],
)
def test_heads_of_another_model_are_refused(changes, message):
    other = dataclasses.replace(HEADS, **changes)
    with pytest.raises(ConfigError, match=message):
        tiny_model()(IDS, routing=other)
    with pytest.raises(ConfigError, match=message):
        tiny_model().use_heads(other)


def test_rewards_take_heads(model):
    score_D1 = jnp.asarray(np.random.default_rng(1).standard_normal((32, 1)), jnp.float32)
    reward = ElasticRewardModel(model, score_D1, CONFIG)
    bare = ElasticRewardModel(tiny_model(), score_D1, CONFIG)
    want = bare.score(IDS, LENGTHS, routing=imposed())
    for routing in (None, "heads"):
        np.testing.assert_array_equal(reward.score(IDS, LENGTHS, routing=routing), want)
    np.testing.assert_array_equal(reward.score(IDS, LENGTHS, routing="routers"), bare.score(IDS, LENGTHS, routing=None))
    np.testing.assert_array_equal(reward.score(IDS, LENGTHS), bare.score(IDS, LENGTHS, routing="full"))


@pytest.mark.parametrize("hidden", [shared_prefix_hidden, separate_rows_hidden])
def test_shared_prompts_take_heads(model, hidden):
    rows = (IDS[:, :64], jnp.array([64, 40]), IDS[:, None, 64:80], jnp.array([[16], [9]]))
    want = hidden(tiny_model(), *rows, routing=imposed())
    for routing in (None, "heads"):
        got = hidden(model, *rows, routing=routing)
        np.testing.assert_array_equal(got.hidden, want.hidden)
        np.testing.assert_array_equal(got.routing.mode, imposed())
    np.testing.assert_array_equal(hidden(model, *rows, routing="routers").hidden, hidden(tiny_model(), *rows).hidden)


def test_int8_layers_keep_heads(model):
    quantize_layers(model)
    np.testing.assert_array_equal(model(IDS).routing.mode, imposed())
