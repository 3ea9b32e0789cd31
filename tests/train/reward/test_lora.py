"""Adapters change nothing at first, change the model as their product says, and can be added into the kernels."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import CONFIG, random_ids, tiny_model

from elastic_jax.errors import ConfigError
from elastic_jax.model import from_params, to_params
from elastic_jax.shared_prefix import shared_prefix_hidden
from train.reward.weights import INPUT_RANKS, fresh_lora, join_lora, merge_lora

SCALE = 0.5
PARAMS = to_params(tiny_model())
FRESH = fresh_lora({path: x.shape for path, x in PARAMS.items()}, tuple(INPUT_RANKS), rank=3, seed=0)
IDS = random_ids((2, 32))


@jax.jit
def adapted(params, adapters):
    model = from_params(CONFIG, params)
    join_lora(model, adapters, SCALE)
    return model(IDS, routing="full").logits


@pytest.fixture(scope="module")
def moved():
    """Adapters whose second half is no longer zero."""
    rng = np.random.default_rng(0)
    return {p: x + 0.3 * rng.standard_normal(x.shape).astype(np.float32) for p, x in FRESH.items()}


def test_fresh_adapters_change_nothing() -> None:
    plain = jax.jit(lambda params: from_params(CONFIG, params)(IDS, routing="full").logits)(PARAMS)
    np.testing.assert_allclose(adapted(PARAMS, FRESH), plain, rtol=1e-5, atol=1e-5)  # two programs round differently


def test_merged_kernels_equal_adapters(moved) -> None:
    merged = merge_lora(PARAMS, moved, SCALE)
    changed = {path for path in PARAMS if not np.array_equal(merged[path], PARAMS[path])}
    assert changed == {f"layers.{target}.kernel" for target in INPUT_RANKS}
    got, want = adapted(merged, FRESH), adapted(PARAMS, moved)
    np.testing.assert_allclose(got, want, atol=2e-4)
    assert np.abs(want - adapted(PARAMS, FRESH)).max() > 0.1


def test_adapters_work_in_shared_prompts_and_each_gets_a_gradient(moved) -> None:
    def loss(adapters, params) -> jax.Array:
        model = from_params(CONFIG, params)
        join_lora(model, adapters, SCALE)
        out = shared_prefix_hidden(model, IDS, jnp.array([32, 20]), IDS[:, None, :9], jnp.array([[9], [5]]))
        return (out.hidden**2 * jnp.arange(float(CONFIG.hidden_size))[None, None, None]).sum()

    slopes = jax.jit(jax.grad(loss))(moved, PARAMS)
    assert set(slopes) == set(moved)
    for path, slope in slopes.items():
        assert np.isfinite(slope).all() and np.abs(slope).max() > 0, path


def test_a_map_that_the_model_does_not_have_is_named() -> None:
    shapes = {path: x.shape for path, x in PARAMS.items() if "gate_proj" not in path}
    with pytest.raises(ConfigError, match="lora.targets names mlp.gate_proj, which this model does not have"):
        fresh_lora(shapes, ("mlp.up_proj", "mlp.gate_proj"), rank=3, seed=0)
