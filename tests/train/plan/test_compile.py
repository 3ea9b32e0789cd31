"""A whole training step through the TPU compiler: it fits, and the estimate is near."""

import importlib.util
from dataclasses import replace

import pytest

from elastic_jax.errors import ConfigError
from elastic_jax.settings import load_settings
from elastic_jax.sharding import MeshConfig
from train.config import RouterTrainConfig
from train.plan.chips import GIB, parse_topology
from train.plan.compile import compile_step, tpu_mesh
from train.plan.search import make_plan
from train.plan.shapes import model_shape

RUN = load_settings(RouterTrainConfig, "router_qwen3_8b_64k")
QWEN = replace(model_shape("qwen3-8b"), router=RUN.router)

needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="pip install 'elastic-jax[tpu-aot]' to compile for TPU"
)


def test_only_tpus_are_compiled_for():
    with pytest.raises(ConfigError, match="a100:8 is no TPU"):
        tpu_mesh(RUN, parse_topology("a100:8"))


@pytest.mark.slow
@needs_libtpu
def test_slices_form_the_outermost_axis():
    mesh = tpu_mesh(replace(RUN, mesh=MeshConfig(fsdp=8, context=4, slices=2)), parse_topology("v6e:4x4"))
    slices = [{device.slice_index for device in group.flat} for group in mesh.devices[0]]
    assert slices == [{0}] * 4 + [{1}] * 4


@pytest.mark.slow
@needs_libtpu
def test_a_small_step_compiles_and_is_reported():
    model = replace(
        QWEN, num_layers=1, hidden_size=256, intermediate_size=512, num_heads=2, num_kv_heads=2, vocab_size=1024
    )
    config = replace(
        RUN,
        remat="offload",
        data=replace(RUN.data, row_length=1024, max_segments=2),
        optim=replace(RUN.optim, rows=2, accumulate=2),
        mesh=MeshConfig(fsdp=2, context=2),
    )
    compiled = compile_step(model, config, tpu_mesh(config, parse_topology("v6e:2x2")))
    assert compiled.refusal == ""
    assert compiled.arguments < compiled.total < GIB
    assert compiled.host == 512 * 256 * 2, "the input of the layer: 512 tokens on each device"
    assert compiled.collectives["all-gather"] > 0 and compiled.flops > 0


@pytest.mark.slow
@needs_libtpu
@pytest.mark.timeout(3600)
def test_qwen3_8b_at_64k_compiles_and_the_estimate_is_near():
    topology = parse_topology("v6e:8x8")
    compiled = compile_step(QWEN, RUN, tpu_mesh(RUN, topology))
    assert compiled.refusal == ""
    assert compiled.total < topology.chip.memory * GIB
    assert compiled.collectives["all-gather"] > 0
    assert make_plan(QWEN, RUN, topology, 0.8).memory.total == pytest.approx(compiled.total, rel=0.15)
