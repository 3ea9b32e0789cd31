import jax
import jax.numpy as jnp
import numpy as np
import pytest

from elastic_jax.errors import ConfigError
from elastic_jax.sampling import RowSampling, Sampling, next_token, next_tokens

PROBABILITIES = np.array([0.5, 0.3, 0.15, 0.05])
LOGITS = jnp.broadcast_to(jnp.log(PROBABILITIES), (20_000, 4))


@pytest.mark.parametrize(
    "settings",
    [{name: value} for name in ("temperature", "top_p") for value in (float("nan"), float("inf"), -1.0, "1", True)]
    + [{"top_k": value} for value in (2.5, -1, "3", 2**31)]
    + [{"top_p": value} for value in (0.0, 1.5)],
)
def test_impossible_settings_are_refused(settings):
    with pytest.raises(ConfigError, match=f"sampling {next(iter(settings))} is"):
        Sampling(**settings)


def shares(sampling):
    return np.bincount(next_token(LOGITS, jax.random.key(0), sampling), minlength=4) / len(LOGITS)


@pytest.mark.parametrize(
    ("sampling", "expected"),
    [
        (Sampling(), [1, 0, 0, 0]),
        (Sampling(temperature=1.0), PROBABILITIES),
        (Sampling(temperature=0.5), PROBABILITIES**2 / (PROBABILITIES**2).sum()),
        (Sampling(temperature=1.0, top_k=2), [0.625, 0.375, 0, 0]),
        (Sampling(temperature=1.0, top_p=0.6), [0.625, 0.375, 0, 0]),
        (Sampling(temperature=1.0, top_p=0.4), [1, 0, 0, 0]),
    ],
)
def test_tokens_follow_the_filtered_distribution(sampling, expected):
    np.testing.assert_allclose(shares(sampling), expected, atol=0.015)


@pytest.mark.parametrize("shift", [-100.0, 0.0, 100.0])
@pytest.mark.parametrize(
    "settings", [{"temperature": 1e-37}, {"temperature": 1e-45}, {"top_p": 1e-30}, {"top_p": 1e-50}]
)
def test_settings_that_leave_one_token_take_the_most_likely(settings, shift):
    logits, sampling = jnp.array([[1.0, 2.0, 40.0, 39.0]]) + shift, Sampling(**{"temperature": 1.0} | settings)
    assert next_token(logits, jax.random.key(0), sampling).tolist() == [2]
    row = RowSampling.stack([RowSampling(sampling.temperature, sampling.top_k, sampling.top_p)])
    assert next_tokens(logits[None], row).tolist() == [[2]]


@pytest.mark.parametrize(
    ("settings", "allowed"),
    [({"top_k": 1}, {1}), ({"top_k": 2}, {1, 2}), ({"top_p": 0.2}, {1}), ({"top_p": 0.6}, {1, 2})],
)
def test_of_equally_likely_tokens_no_more_are_kept_than_asked_for(settings, allowed):
    logits = jnp.broadcast_to(jnp.array([0.0, 3.0, 3.0, 3.0]), (200, 4))
    assert set(next_token(logits, jax.random.key(0), Sampling(temperature=1.0, **settings)).tolist()) == allowed


def test_rows_with_settings_of_their_own_draw_what_each_draws_alone():
    settings = [
        Sampling(),
        Sampling(temperature=1.0),
        Sampling(temperature=0.7, top_k=5),
        Sampling(temperature=1.3, top_k=9, top_p=0.8),
        Sampling(temperature=1.0, top_p=0.3),
    ]
    B, T, V, before = len(settings), 3, 50, 7
    logits = jnp.asarray(np.random.default_rng(0).standard_normal((B, T, V)) * 2, jnp.float32)
    rows = RowSampling(
        *(jnp.asarray([getattr(x, name) for x in settings]) for name in ("temperature", "top_k", "top_p")),
        seed=jnp.arange(B),
        index=jnp.full(B, before),
    )
    drawn = jax.jit(next_tokens)(logits, rows)
    for b, sampling in enumerate(settings):
        for t in range(T):
            key = jax.random.fold_in(jax.random.key(b), before + t)
            assert int(drawn[b, t]) == int(next_token(logits[b, t][None], key, sampling)[0])
