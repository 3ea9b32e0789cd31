import jax
import jax.numpy as jnp
import numpy as np
import pytest

from elastic_jax.errors import ConfigError
from elastic_jax.sampling import Sampling, next_token

PROBABILITIES = np.array([0.5, 0.3, 0.15, 0.05])
LOGITS = jnp.broadcast_to(jnp.log(PROBABILITIES), (20_000, 4))


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


@pytest.mark.parametrize("bad", [{"temperature": -1.0}, {"top_k": -1}, {"top_p": 0.0}, {"top_p": 1.5}])
def test_impossible_settings_are_refused(bad):
    with pytest.raises(ConfigError, match=next(iter(bad))):
        Sampling(**bad)
