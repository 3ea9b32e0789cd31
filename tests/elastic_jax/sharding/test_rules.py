"""Meshes, the rules that divide parameters over them, and what is refused."""

import dataclasses
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from jax.sharding import AbstractMesh, PartitionSpec
from programs import reports
from tiny import CONFIG

from elastic_jax.errors import ConfigError
from elastic_jax.model import param_shapes
from elastic_jax.sharding import MeshConfig, make_mesh, rules
from elastic_jax.sharding.mesh import AXES
from elastic_jax.sharding.rules import explain, param_specs

BOTH = ("fsdp", "context")


def mesh_of(data: int = 1, fsdp: int = 1, tensor: int = 1, context: int = 1) -> AbstractMesh:
    return AbstractMesh((data, fsdp, tensor, context), AXES)


@pytest.fixture(scope="module")
def on_eight() -> dict:
    """What the program with eight devices reports."""
    (found,) = reports("mesh_program.py")
    return found


def test_every_dimension_is_divided_as_the_rules_say():
    shapes = param_shapes(dataclasses.replace(CONFIG, qkv_bias=True, qk_norm="head", mlp_bias=True))
    specs = param_specs(shapes, mesh_of(data=2, fsdp=2, tensor=2, context=2))
    assert specs["embed.embedding"] == PartitionSpec("tensor", BOTH)
    assert specs["lm_head.kernel"] == PartitionSpec(BOTH, "tensor")
    assert specs["layers.attn.q_proj.kernel"] == PartitionSpec(None, BOTH, "tensor")
    assert specs["layers.attn.k_proj.kernel"] == PartitionSpec(None, BOTH, "tensor")
    assert specs["layers.attn.o_proj.kernel"] == PartitionSpec(None, "tensor", None, BOTH)
    assert specs["layers.attn.v_proj.bias"] == PartitionSpec(None, "tensor")
    assert specs["layers.mlp.gate_proj.bias"] == specs["layers.mlp.up_proj.bias"] == PartitionSpec(None, "tensor")
    assert specs["layers.mlp.up_proj.kernel"] == PartitionSpec(None, BOTH, "tensor")
    assert specs["layers.mlp.down_proj.kernel"] == PartitionSpec(None, "tensor", BOTH)
    whole = [path for path in shapes if "norm" in path or "router" in path]
    assert len(whole) == 15 and all(specs[path] == PartitionSpec() for path in whole)


def test_one_device_holds_everything():
    shapes = param_shapes(CONFIG)
    assert set(param_specs(shapes, mesh_of()).values()) == {PartitionSpec()}
    assert sum(rules.device_bytes(shapes, mesh_of()).values()) == sum(map(rules.array_bytes, shapes.values()))


def test_kv_heads_that_tensor_does_not_divide_are_replicated_and_it_is_said():
    shapes = param_shapes(CONFIG)
    specs = param_specs(shapes, mesh_of(tensor=4))
    assert specs["layers.attn.q_proj.kernel"] == PartitionSpec(None, None, "tensor")
    assert specs["layers.attn.k_proj.kernel"] == PartitionSpec()
    assert "2 by tensor 4: K/V projections are replicated" in explain(shapes, mesh_of(tensor=4))


def test_a_width_that_fsdp_and_context_do_not_divide_together_takes_fsdp_alone():
    shapes = {"layers.mlp.up_proj.kernel": jax.ShapeDtypeStruct((2, 12, 16), np.float32)}
    assert param_specs(shapes, mesh_of(fsdp=4, context=2)) == {"layers.mlp.up_proj.kernel": PartitionSpec(None, "fsdp")}
    assert "12 by fsdp 4 x context 2: by fsdp only" in explain(shapes, mesh_of(fsdp=4, context=2))


def test_all_parameters_that_do_not_fit_are_listed():
    with pytest.raises(ConfigError, match="q_proj.kernel") as caught:
        param_specs(param_shapes(CONFIG), mesh_of(tensor=3))
    text = str(caught.value)
    assert "4 cannot be divided by tensor 3" in text and "o_proj.kernel" in text
    assert "mlp" not in text, "48 columns divide by three"


def test_one_mesh_axis_cannot_divide_two_dimensions(monkeypatch):
    monkeypatch.setitem(rules._RULES, "layers.mlp.up_proj.kernel", "LDD")
    with pytest.raises(ConfigError, match=r"up_proj.kernel \[2, 32, 48\]: mesh axis fsdp divides two"):
        param_specs(param_shapes(CONFIG), mesh_of(fsdp=2))


def test_explain_counts_the_bytes_of_one_device():
    shapes = {
        "norm.scale": jax.ShapeDtypeStruct((1024,), np.float32),
        "lm_head.kernel": jax.ShapeDtypeStruct((1024, 2048), np.float32),
    }
    text = explain(shapes, mesh_of(data=2, fsdp=2, tensor=4))
    norm, head, total = text.splitlines()[1:]
    assert "replicated" in norm and norm.endswith("0.00 MiB")
    assert "[1024, 2048]" in head and "fsdp tensor" in head and head.endswith("1.00 MiB")
    assert total == "  0.001 GiB on each device, 0.008 GiB in all"


@pytest.mark.parametrize(
    "config, devices, want",
    [
        (MeshConfig(data=-1, tensor=2), 8, (4, 1, 2, 1)),
        (MeshConfig(fsdp=4, context=-1), 8, (1, 4, 1, 2)),
        (MeshConfig(data=4, fsdp=2, slices=2), 8, (4, 2, 1, 1)),
        (MeshConfig(), 1, (1, 1, 1, 1)),
    ],
)
def test_sizes_fill_the_devices(config: MeshConfig, devices: int, want: tuple):
    assert tuple(config.sizes(devices).values()) == want


def test_slices_divide_the_outermost_axis():
    config = MeshConfig(fsdp=8, slices=2)
    assert config.divided_by_slices(config.sizes(8)) == ((1, 4, 1, 1), (1, 2, 1, 1))
    config = MeshConfig(data=4, fsdp=2, slices=2)
    assert config.divided_by_slices(config.sizes(8)) == ((2, 2, 1, 1), (2, 1, 1, 1))


@pytest.mark.parametrize(
    "config, devices, problem",
    [
        (MeshConfig(fsdp=3), 8, "fsdp 3, .* does not arrange 8 devices"),
        (MeshConfig(fsdp=-1, tensor=3), 8, "does not arrange 8 devices"),
        (MeshConfig(tensor=16, data=-1), 8, "does not arrange 8 devices"),
        (MeshConfig(tensor=8, slices=2), 8, "2 slices divide neither data"),
    ],
)
def test_sizes_refuse_what_does_not_fit(config: MeshConfig, devices: int, problem: str):
    with pytest.raises(ConfigError, match=problem):
        config.sizes(devices)


@pytest.mark.parametrize("wrong", [{"data": 0}, {"fsdp": -2}, {"data": -1, "fsdp": -1}, {"slices": 0}])
def test_senseless_axes_are_refused(wrong: dict):
    with pytest.raises(ConfigError, match="want 1 or more, and -1 for at most one"):
        MeshConfig(**wrong)


def test_slices_must_be_those_of_the_devices():
    devices = [SimpleNamespace(slice_index=i // 2, platform="tpu") for i in range(4)]
    with pytest.raises(ConfigError, match="mesh slices is 1; these 4 devices form 2"):
        make_mesh(MeshConfig(data=4), devices)
    with pytest.raises(ConfigError, match="mesh slices is 4; these 4 devices form 2"):
        make_mesh(MeshConfig(data=4, slices=4), devices)


def test_meshes_of_eight_devices(on_eight):
    assert on_eight["meshes"] == {
        "shape": {"data": 2, "fsdp": 2, "tensor": 1, "context": 2},
        "auto": True,
        "batch_shard": [3, 2, 3],
        "row_shard": [2],
        "half": [0, 1, 2, 3],
    }


@pytest.mark.parametrize("check", ["load", "load_replicas", "load_unshared_heads"])
def test_weights_are_read_into_their_shards(on_eight, check: str):
    found = on_eight[check]
    assert found["different"] == [] and found["misplaced"] == []
    assert found["largest_read"] <= found["largest_block"], "more than a device's block of a layer was read at once"
    assert found["all_read"] == found["stored"], "each block is read once, whatever the number of its devices"


def test_layers_are_made_int8_where_they_are(on_eight):
    assert on_eight["rounded"] == {"maps": 7, "different": [], "misplaced": [], "share": 1 / 8}


@pytest.mark.parametrize("check", ["nll", "nll_whole_vocabulary"])
def test_cross_entropy_over_a_divided_vocabulary(on_eight, check: str):
    assert on_eight[check]["error"] < 1e-5 < on_eight[check]["largest"]
