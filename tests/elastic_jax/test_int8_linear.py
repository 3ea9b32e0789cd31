"""int8 kernels of frozen layers: rounding, what a model of them computes, what a mesh does with them, refusals."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AbstractMesh, PartitionSpec
from tiny import CONFIG, random_ids, tiny_model

from elastic_jax.errors import CheckpointError, ConfigError
from elastic_jax.int8_linear import int8_kernel, int8_maps, int8_shapes, quantize_layers
from elastic_jax.layers import INPUT_RANKS
from elastic_jax.model import from_params, param_shapes, to_params
from elastic_jax.router import SampledGates
from elastic_jax.sharding.mesh import AXES
from elastic_jax.sharding.rules import array_bytes, device_bytes, param_specs
from elastic_jax.weights import save_pretrained


def plain(params: dict) -> dict:
    """The same numbers without int8: every kernel multiplied out."""
    out = dict(params)
    for name in int8_maps(params):
        kernel, scale = out[f"layers.{name}.kernel"], out.pop(f"layers.{name}.scale")
        inputs = tuple(range(1, 1 + INPUT_RANKS[name]))
        out[f"layers.{name}.kernel"] = kernel.astype(scale.dtype) * jnp.expand_dims(scale, inputs)
    return out


def test_float16_is_refused():
    model = tiny_model()
    model.layers.attn.q_proj.kernel = nnx.Param(model.layers.attn.q_proj.kernel[...].astype(jnp.float16))
    with pytest.raises(ConfigError, match="bfloat16 or float32"):
        quantize_layers(model)


@pytest.fixture(scope="module")
def int8() -> dict:
    model = tiny_model(qkv_bias=True)
    quantize_layers(model)
    return to_params(model)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_rounding_errs_by_half_a_step_of_each_channel(dtype: str):
    drawn = np.random.default_rng(0).normal(size=(2, 3, 16, 5)) * np.logspace(-6, 3, 5)
    kernel = jnp.asarray(drawn, dtype).at[1, ..., 2].set(0.0)
    values, scale = jax.jit(int8_kernel, static_argnums=1)(kernel, 2)
    assert values.dtype == jnp.int8 and scale.dtype == kernel.dtype and scale.shape == (2, 5)
    step = np.asarray(scale, np.float64)[:, None, None]
    error = np.abs(np.asarray(kernel, np.float64) - np.asarray(values, np.float64) * step)
    assert (error <= step * 0.5000001).all()
    assert not np.asarray(values)[1, ..., 2].any() and scale[1, 2] == 1
    assert (np.abs(np.asarray(values)).max((1, 2))[0] == 127).all(), "the whole range is used"


def test_numbers_that_are_not_finite_do_not_vanish():
    values, scale = int8_kernel(jnp.ones((1, 4, 3)).at[0, 1, 2].set(jnp.nan), 1)
    assert np.isnan(scale[0]).tolist() == [False, False, True]


def test_a_model_of_int8_kernels_computes_what_their_products_would(int8):
    """Hidden states, and the slope that reaches the routers through layers that are computed again."""
    config, ids = tiny_model(qkv_bias=True).config, random_ids((1, 64))
    assert int8_maps(int8) == list(INPUT_RANKS)

    def loss(routers, frozen, remat):
        model = from_params(config, frozen | routers)
        out = model.hidden(ids, gates=SampledGates(jax.random.key(0), 1.0), remat=remat)
        return (out.hidden_BTD**2 * jnp.arange(32.0)[None, None]).sum(), out.hidden_BTD

    slope = jax.jit(jax.value_and_grad(loss, has_aux=True), static_argnums=2)
    routers = {path: x for path, x in int8.items() if ".router." in path}
    (_, want), gradient = slope(routers, plain(int8), False)
    (_, got), found = slope(routers, int8, "offload")
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)
    for path, x in gradient.items():
        np.testing.assert_allclose(found[path], x, rtol=1e-4, atol=1e-5 * np.abs(x).max(), err_msg=path)
        assert (np.abs(x).reshape(len(x), -1).max(1) > 0).all(), "sampled gates reach every router"
    text = str(jax.make_jaxpr(jax.grad(lambda r: loss(r, int8, False)[0]))(routers))
    assert "i8[2,32,48]" in text and "f32[2,32,48]" not in text, "the layers exist together as numbers of four bytes"


def test_a_bfloat16_model_has_bfloat16_scales_and_half_the_bytes():
    shapes = param_shapes(CONFIG)
    rounded = int8_shapes(shapes)
    kernels = [f"layers.{name}.kernel" for name in INPUT_RANKS]
    before, after = (sum(array_bytes(x[path]) for path in kernels) for x in (shapes, rounded))
    assert before == 2 * after
    scales = {path: x for path, x in rounded.items() if path not in shapes}
    assert {x.dtype for x in scales.values()} == {jnp.dtype(jnp.bfloat16)}
    assert scales["layers.attn.o_proj.scale"].shape == (2, 32) and scales["layers.mlp.up_proj.scale"].shape == (2, 48)


def test_kernels_and_scales_are_divided_alike():
    mesh = AbstractMesh((1, 2, 2, 2), AXES)
    shapes = param_shapes(CONFIG)
    plain_specs, specs = param_specs(shapes, mesh), param_specs(int8_shapes(shapes), mesh)
    assert {path: specs[path] for path in plain_specs} == plain_specs
    for name in ("attn.q_proj", "attn.k_proj", "attn.v_proj", "mlp.gate_proj", "mlp.up_proj"):
        assert specs[f"layers.{name}.scale"] == PartitionSpec(None, "tensor"), name
    for name in ("attn.o_proj", "mlp.down_proj"):
        assert specs[f"layers.{name}.scale"] == PartitionSpec(), name
    each = device_bytes(int8_shapes(shapes), mesh)
    assert each["layers.mlp.up_proj.kernel"] == 2 * 32 * 48 // 8
    with pytest.raises(ConfigError, match="q_proj.scale"):
        param_specs(int8_shapes(shapes), AbstractMesh((1, 1, 3, 1), AXES))


def test_misfits_are_listed(int8):
    config = tiny_model(qkv_bias=True).config
    broken = dict(int8)
    del broken["layers.attn.q_proj.scale"]
    broken["layers.mlp.up_proj.kernel"] = int8["layers.mlp.up_proj.kernel"][:, :-1]
    broken["layers.mlp.down_proj.kernel"] = jnp.zeros((2, 48, 32))
    with pytest.raises(CheckpointError) as error:
        from_params(config, broken)
    for part in (
        "missing layers.attn.q_proj.scale (2, 4, 8)",
        "unexpected layers.mlp.down_proj.scale (2, 32)",
        "layers.mlp.up_proj.kernel: got (2, 31, 48), want (2, 32, 48)",
    ):
        assert part in str(error.value)


def test_layers_are_made_int8_once(int8):
    model = from_params(tiny_model(qkv_bias=True).config, int8)
    quantize_layers(model)
    assert all(x is int8[path] for path, x in to_params(model).items() if path.endswith("proj.kernel"))
    assert nnx.state(model.layers.attn.q_proj)["bias"].get_value().shape == (2, 4, 8)


def test_maps_that_a_model_does_not_have_are_passed_over():
    model = tiny_model(gated_mlp=False, activation="relu2", mlp_bias=True)
    shapes = int8_shapes(param_shapes(model.config))
    quantize_layers(model)
    assert int8_maps(to_params(model)) == [name for name in INPUT_RANKS if name != "mlp.gate_proj"]
    assert set(shapes) == set(to_params(model))


def test_only_routers_of_an_int8_model_are_written(int8, tmp_path):
    model = from_params(tiny_model(qkv_bias=True).config, int8)
    save_pretrained(model, tmp_path / "router", format="router")
    assert (tmp_path / "router" / "router.safetensors").is_file()
    for form in ("hf", "elastic"):
        with pytest.raises(ConfigError, match="int8; only its routers can be written"):
            save_pretrained(model, tmp_path / form, format=form)
        assert not (tmp_path / form).exists()
