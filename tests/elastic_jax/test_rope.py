import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from elastic_jax.config import RopeConfig
from elastic_jax.rope import attention_scale, rope_table

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "rope.json").read_text())


def rope_config(parameters: dict) -> RopeConfig:
    renamed = {"rope_type": "type", "rope_theta": "theta", "original_max_position_embeddings": "original_max_position"}
    fields = {renamed.get(key, key): value for key, value in parameters.items()}
    return RopeConfig(**{key: tuple(value) if isinstance(value, list) else value for key, value in fields.items()})


@pytest.mark.parametrize("case", GOLDEN["cases"], ids=lambda case: f"{case['name']}-{case['seq_len']}")
def test_frequencies_and_scale_equal_transformers(case):
    rope = rope_config(case["parameters"])
    limit, position = GOLDEN["max_position_embeddings"], 7
    cos, sin = rope_table(
        rope, GOLDEN["head_dim"], jnp.full((1, 1), position), jnp.full((1, 1), case["seq_len"]), limit
    )
    angles = position * np.asarray(case["frequencies"])
    np.testing.assert_allclose(cos[0, 0], case["scale"] * np.cos(angles), atol=2e-6)
    np.testing.assert_allclose(sin[0, 0], case["scale"] * np.sin(angles), atol=2e-6)
    assert attention_scale(rope, limit) == pytest.approx(case["scale"])


def test_length_dependent_types_look_at_each_sequence_alone():
    rope = RopeConfig(type="dynamic", factor=2.0)
    both, _ = rope_table(rope, 16, jnp.full((2, 1), 9), jnp.array([[40], [300]]), 256)
    short, _ = rope_table(rope, 16, jnp.full((1, 1), 9), jnp.array([[40]]), 256)
    np.testing.assert_array_equal(both[0], short[0])
    assert np.abs(both[1] - both[0]).max() > 1e-3
