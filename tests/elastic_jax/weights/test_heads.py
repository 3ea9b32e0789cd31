"""Calibrated heads and the model that they belong to."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from checkpoints import GOLDEN

from elastic_jax import Heads, RouterConfig
from elastic_jax.errors import CheckpointError, ConfigError
from elastic_jax.int8_linear import quantize_layers
from elastic_jax.reward import ElasticRewardModel
from elastic_jax.sharding import MeshConfig, make_mesh
from elastic_jax.weights import from_pretrained, save_pretrained
from elastic_jax.weights.heads import heads_fingerprint


def test_a_model_has_one_fingerprint_in_every_dtype_that_keeps_bfloat16():
    source = GOLDEN / "qwen3_tied"
    model = from_pretrained(source)
    digest = heads_fingerprint(model)
    assert digest == heads_fingerprint(from_pretrained(source, dtype="float32"))
    mesh = make_mesh(MeshConfig(), devices=jax.devices()[:1])
    assert digest == heads_fingerprint(from_pretrained(source, mesh=mesh))
    assert digest != heads_fingerprint(from_pretrained(GOLDEN / "llama3"))
    kernel = model.layers.attn.k_proj.kernel
    kernel[...] = kernel[...].at[-1, 0, 0, 0].add(jnp.asarray(1.0, kernel.dtype))
    assert digest != heads_fingerprint(model)


@pytest.mark.parametrize("dtype", ["float16", "int8"])
def test_values_that_are_rounded_otherwise_have_no_fingerprint(dtype):
    model = from_pretrained(GOLDEN / "llama3", dtype="float16" if dtype == "float16" else "bfloat16")
    if dtype == "int8":
        quantize_layers(model)
    assert heads_fingerprint(model) is None


OFFICIAL = GOLDEN / "official_qwen3"
BASE = GOLDEN / "qwen3_tied"
"""Without routers, so that the heads say what sparse heads see."""


def calibrated(source=BASE, **changes) -> Heads:
    model = from_pretrained(source)
    shape = (model.config.num_layers, model.config.num_kv_heads)
    router = RouterConfig(block_size=16, sink_blocks=1, local_blocks=3)
    order = np.arange(math.prod(shape)).reshape(shape)
    return dataclasses.replace(Heads(order, router, msr=0.5, weights=heads_fingerprint(model)), **changes)


def modes_of(model) -> np.ndarray:
    return np.asarray(model(jnp.ones((1, 40), jnp.int32)).routing.mode)[:, 0]


def test_a_model_takes_heads_and_what_their_sparse_heads_see(tmp_path, caplog):
    heads = calibrated()
    heads.save(tmp_path / "heads")
    caplog.clear()
    for given in (heads, tmp_path / "heads", str(tmp_path / "heads" / "heads_config.json")):
        model = from_pretrained(BASE, heads=given)
        np.testing.assert_array_equal(modes_of(model), heads.modes())
        assert (model.config.router.local_blocks, model.config.router.block_size) == (3, 16)
    np.testing.assert_array_equal(modes_of(from_pretrained(BASE, heads=heads, msr=1.0)), np.ones_like(heads.order))
    assert caplog.text == "", "a model with heads does not miss routers"


@pytest.mark.parametrize("kind", ["hf", "elastic"])
def test_a_saved_model_keeps_its_heads(kind, tmp_path):
    source = OFFICIAL if kind == "elastic" else BASE
    heads = calibrated(source)
    if kind == "elastic":
        heads = dataclasses.replace(heads, router=from_pretrained(source).config.router)
    model = from_pretrained(source, heads=heads, msr=0.25)
    save_pretrained(model, tmp_path / "saved", format=kind)
    again = from_pretrained(tmp_path / "saved")
    np.testing.assert_array_equal(modes_of(again), heads.modes(0.25))
    assert again.config.router == model.config.router and again.heads.weights == heads.weights
    np.testing.assert_array_equal(modes_of(from_pretrained(tmp_path / "saved", msr=0.75)), heads.modes(0.75))

    again.use_heads(None)
    save_pretrained(again, tmp_path / "saved", format=kind, overwrite=True)
    assert not (tmp_path / "saved" / "heads_config.json").exists(), "heads of the model before"


def test_heads_are_not_saved_with_weights_that_changed(tmp_path, caplog):
    model = from_pretrained(BASE, heads=calibrated())
    kernel = model.layers.attn.k_proj.kernel
    kernel[...] = kernel[...] * 2
    save_pretrained(model, tmp_path / "saved")
    assert "so the heads are not saved" in caplog.text
    assert from_pretrained(tmp_path / "saved").heads is None


def test_a_reward_model_takes_and_keeps_heads(tmp_path):
    heads = calibrated()
    reward = ElasticRewardModel.from_pretrained(BASE, new_head_seed=0, heads=heads, msr=0.25)
    np.testing.assert_array_equal(modes_of_reward(reward), heads.modes(0.25))
    reward.save_pretrained(tmp_path / "saved")
    np.testing.assert_array_equal(
        modes_of_reward(ElasticRewardModel.from_pretrained(tmp_path / "saved")), heads.modes(0.25)
    )


def modes_of_reward(reward: ElasticRewardModel) -> np.ndarray:
    return np.asarray(reward.decoder.hidden(jnp.ones((1, 40), jnp.int32)).routing.mode)[:, 0]


def test_heads_that_do_not_belong_to_the_model_are_refused():
    heads = calibrated()
    with pytest.raises(CheckpointError, match="calibrated for weights abababab.*has [0-9a-f]{12}.*weights=None"):
        from_pretrained(BASE, heads=dataclasses.replace(heads, weights="ab" * 32))
    accepted = from_pretrained(BASE, heads=dataclasses.replace(heads, weights=None))
    np.testing.assert_array_equal(modes_of(accepted), heads.modes())
    with pytest.raises(ConfigError, match="these heads are of a model with 1 layers of 2 KV heads; this model has"):
        from_pretrained(BASE, heads=Heads(np.array([[0, 1]]), heads.router))
    with pytest.raises(ConfigError, match="local_blocks is 2, the heads have 3"):  # trained routers decide
        from_pretrained(OFFICIAL, heads=calibrated(OFFICIAL))
    with pytest.raises(ConfigError, match="pattern is 'fa-xa', the heads have 'fa-ssa'"):
        from_pretrained(BASE, heads=heads, pattern="fa-xa")
    with pytest.raises(ConfigError, match="msr=0.5 was given without heads"):
        from_pretrained(BASE, msr=0.5)
    with pytest.raises(ConfigError, match="msr is 1.5"):
        from_pretrained(BASE, heads=heads, msr=1.5)


def test_heads_of_a_divided_model_lie_on_its_mesh():
    mesh = make_mesh(MeshConfig(), devices=jax.devices()[:1])
    model = from_pretrained(BASE, mesh=mesh, heads=calibrated())
    np.testing.assert_array_equal(modes_of(model), calibrated().modes())
