"""Numbers that are NaN or infinite end a generation, a request or a score with an error that names the layer."""

import jax.numpy as jnp
import pytest
from tiny import CONFIG, random_ids, tiny_model

from elastic_jax.engine import Engine, EngineConfig
from elastic_jax.errors import NumericsError
from elastic_jax.generation import generate
from elastic_jax.kv_cache import CacheConfig
from elastic_jax.model import from_params, to_params
from elastic_jax.reward import ElasticRewardModel

BAD = 9
"""A token whose embedding is infinite: prompts without it are well."""
IDS = jnp.where(random_ids((2, 20)) == BAD, 1, random_ids((2, 20)))


def model_with(path: str, change):
    params = to_params(tiny_model())
    return from_params(CONFIG, params | {path: change(params[path])})


def broken_layer(layer: int):
    return model_with("layers.mlp.down_proj.kernel", lambda x: x.at[layer].set(jnp.nan))


BROKEN = {
    "the embedding": lambda: model_with("embed.embedding", lambda x: x.at[BAD].set(jnp.inf)),
    "layer 0 of 2": lambda: broken_layer(0),
    "layer 1 of 2": lambda: broken_layer(1),
    "the vocabulary head": lambda: model_with("lm_head.kernel", lambda x: x.at[0, 0].set(jnp.nan)),
}


@pytest.mark.parametrize("place", BROKEN)
def test_the_first_place_that_is_not_finite_is_named(place):
    """The first row is well where one token alone overflows."""
    ids, row = (IDS.at[1, 5].set(BAD), 1) if place == "the embedding" else (IDS, 0)
    with pytest.raises(NumericsError, match=f"row {row}: logits after 20 tokens: .* in float32; {place}"):
        generate(BROKEN[place](), ids, max_new_tokens=4, routing="full")


def test_a_score_that_is_not_finite_is_an_error():
    decoder = broken_layer(1)
    with pytest.raises(NumericsError, match="row 0: the score after 20 tokens: .*layer 1 of 2"):
        ElasticRewardModel(decoder, jnp.ones((CONFIG.hidden_size, 1)), decoder.config).score(IDS)


@pytest.mark.parametrize("bits", [16, 8])
def test_a_request_ends_alone(bits):
    model, cache, ids = BROKEN["the embedding"](), CacheConfig(bits=bits), IDS[0].tolist()
    engine = Engine(model, EngineConfig(slots=4, max_length=128), cache)
    well = engine.submit(ids, max_new_tokens=3, stop_tokens=[])
    for bad in [engine.submit([*ids, BAD], max_new_tokens=6, beams=beams) for beams in (1, 2)]:
        list(engine.run())
        assert bad.finish == "error" and isinstance(bad.error, NumericsError) and "the embedding" in str(bad.error)
    alone = generate(model, IDS[:1], max_new_tokens=3, stop_tokens=[], cache=cache)
    assert well.tokens == alone.tokens[0].tolist()
