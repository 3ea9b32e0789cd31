"""The estimate: exact where shapes decide, in the right direction elsewhere; the search; the command."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from jax.sharding import AbstractMesh
from overridden import overridden

from elastic_jax import cli
from elastic_jax.errors import ConfigError
from elastic_jax.settings import load_settings
from elastic_jax.sharding import MeshConfig
from elastic_jax.sharding.mesh import AXES
from train.config import RouterTrainConfig
from train.plan.chips import GIB, parse_topology
from train.plan.compile import Compiled
from train.plan.estimate import step_memory, step_work
from train.plan.report import overrides, plan_text
from train.plan.search import make_plan, search
from train.plan.shapes import known_models, model_shape

RECIPES = sorted(file.stem for file in (Path(__file__).parents[3] / "configs").glob("router_*_64k.yaml"))
QWEN = replace(model_shape("Qwen/Qwen3-8B"), router=load_settings(RouterTrainConfig, "router_qwen3_8b_64k").router)
RUN = load_settings(RouterTrainConfig, "router_qwen3_8b_64k")


def mesh_of(*sizes: int) -> AbstractMesh:
    return AbstractMesh(sizes, AXES)


@pytest.mark.parametrize("name, billions", [("qwen3-8b", 8.19), ("qwen3-4b", 4.02), ("llama-3.1-8b", 8.03)])
def test_shipped_shapes_have_the_published_number_of_parameters(name: str, billions: float):
    assert name in known_models()
    model = replace(model_shape(name), router=RUN.router)
    memory = step_memory(model, RUN, mesh_of(1, 1, 1, 1))
    assert memory.weights / 2 / 1e9 == pytest.approx(billions, abs=0.005)
    assert memory.routers == 4 * 263_682 * model.num_layers, "float32, on every device"


def test_exact_parts_of_qwen3_8b_on_64_chips():
    memory = step_memory(QWEN, replace(RUN, optim=replace(RUN.optim, rows=48)), mesh_of(1, 8, 1, 8))
    assert memory.weights / GIB == pytest.approx(8.19e9 * 2 / 64 / GIB, rel=0.01)
    assert memory.optimizer == 3 * memory.routers
    assert memory.layer_inputs == 36 * (48 * 65536 // 64) * 4096 * 2


def test_memory_moves_in_the_right_direction():
    base = step_memory(QWEN, RUN, mesh_of(1, 8, 1, 8))
    offload = step_memory(QWEN, replace(RUN, remat="offload"), mesh_of(1, 8, 1, 8))
    kept = step_memory(QWEN, replace(RUN, remat=False), mesh_of(1, 8, 1, 8))
    assert offload.host == base.layer_inputs and offload.total < base.total < kept.total
    by_heads = step_memory(QWEN, RUN, mesh_of(1, 8, 8, 1))
    assert by_heads.keys_and_values * 8 == base.keys_and_values, "each device has one of eight KV heads"
    assert by_heads.gathered * 8 == pytest.approx(base.gathered, rel=0.01)


def test_int8_weights_are_half_as_many_bytes_to_keep_and_to_gather():
    mesh, topology = mesh_of(1, 8, 1, 8), parse_topology("v6e:8x8")
    kept, int8 = (replace(RUN, weights=weights) for weights in ("model", "int8"))
    before, after = (step_memory(QWEN, config, mesh) for config in (kept, int8))
    vocabulary = 2 * 2 * 151936 * 4096
    assert before.weights * 64 == pytest.approx(2 * 6.95e9 + vocabulary, rel=0.01)
    scales = 2 * 36 * 38_912
    assert after.weights * 64 == pytest.approx(6.95e9 + vocabulary + 64 * scales, rel=0.01), "scales are everywhere"
    layer, largest = 6.95e9 / 36, 2 * 4096 * 12_288
    assert before.gathered == pytest.approx(2 * layer, rel=0.01)
    assert after.gathered == pytest.approx(layer + largest, rel=0.01), "the largest matrix is converted to bfloat16"
    assert after.total < before.total
    received = [step_work(QWEN, config, mesh, topology, 0.8).received for config in (kept, int8)]
    passes = RUN.optim.accumulate * RUN.gates.draws
    assert received[0] - received[1] == pytest.approx(2 * 63 / 64 * 6.95e9 * passes, rel=0.01), "forward and backward"


def test_work_counts_what_routing_saves():
    topology = parse_topology("v6e:8x8")
    full, half, sparse = (step_work(QWEN, RUN, mesh_of(1, 8, 1, 8), topology, share) for share in (0, 0.5, 1))
    assert full.attention_flops == full.full_attention_flops
    assert full.seconds > half.seconds > sparse.seconds
    assert 2 * half.attention_flops == pytest.approx(full.attention_flops + sparse.attention_flops)
    per_token = full.matrix_flops / full.tokens
    assert per_token == pytest.approx(6 * 6.95e9 + 4 * 4096 * 151936, rel=0.01), "three products with each weight"


def test_kernels_say_their_vector_memory():
    tpu, gpu = (make_plan(QWEN, RUN, parse_topology(name), 0.8).kernels for name in ("v6e:8x8", "a100:8"))
    assert gpu == {}
    assert 2**20 < tpu["forward"] < tpu["limit"] and 2**20 < tpu["backward"] < tpu["limit"]


def test_search_keeps_the_batch_and_gives_the_fastest_first():
    topology = parse_topology("v5e:4x4")
    plans = search(QWEN, RUN, topology, 0.8)
    assert plans and all(plan.fits for plan in plans)
    assert {plan.config.optim.rows * plan.config.optim.accumulate for plan in plans} == {48}
    assert {plan.mesh.size for plan in plans} == {16}
    int8 = search(QWEN, replace(RUN, weights="int8"), topology, 0.8)
    assert {plan.config.weights for plan in int8} == {"int8"} and len(int8) >= len(plans)
    seconds = [plan.work.seconds for plan in plans]
    assert seconds == sorted(seconds)
    again = make_plan(QWEN, plans[0].config, topology, 0.8)
    assert again.memory == plans[0].memory, "its settings give the same plan"


@pytest.mark.parametrize("filled, fits", [(0.92, True), (0.95, False)])
def test_an_estimate_must_leave_some_memory_free(filled, fits):
    plan = make_plan(QWEN, RUN, parse_topology("v6e:8x8"), 0.8)
    room = round(filled * plan.topology.chip.memory * GIB) - plan.memory.total
    plan = plan._replace(memory=plan.memory._replace(layer_inputs=plan.memory.layer_inputs + room))
    assert plan.fits is fits
    assert plan_text(plan, None).splitlines()[-1].startswith("fits" if fits else "does not fit: 0.6 GiB too much")


def test_text_names_the_number_of_slices_where_there_are_several():
    topology = parse_topology("v6e:8x8")
    meshes = (replace(RUN.mesh, slices=slices) for slices in (1, 2))
    one, two = (plan_text(make_plan(QWEN, replace(RUN, mesh=mesh), topology, 0.8), None) for mesh in meshes)
    assert "slices" not in one and two.startswith("v6e:8x8: 128 devices") and two.splitlines()[0].endswith(", 2 slices")


def test_nothing_fits_on_one_small_chip():
    assert search(QWEN, RUN, parse_topology("v5e:1x1"), 0.8) == []


@pytest.mark.parametrize("wrong", ["v6e", "v6e:8", "v5p:4x4", "v5e:0x4", "h100:2x4", "v9:2x2", "v6e:8x"])
def test_topologies_that_are_none(wrong: str):
    with pytest.raises(ConfigError, match=f"topology '{wrong}'"):
        parse_topology(wrong)


def test_rows_and_tokens_that_the_mesh_cannot_divide():
    topology = parse_topology("v6e:8x8")
    with pytest.raises(ConfigError, match="optim.rows is 8; the mesh divides rows over 16"):
        make_plan(QWEN, replace(RUN, mesh=MeshConfig(fsdp=16, context=4)), topology, 0.8)
    short = replace(RUN, data=replace(RUN.data, row_length=1024))
    with pytest.raises(ConfigError, match="data.row_length is 1024; with context 8 .* multiple of 2048"):
        make_plan(QWEN, short, topology, 0.8)


def run(capsys, *arguments: str) -> tuple[int, str]:
    code = cli.main(["plan", *arguments])
    return code, capsys.readouterr().out


@pytest.mark.parametrize("topology", ["v5p:4x4x4", "v6e:8x8", "v6e:4x4", "v5e:8x8", "a100:8", "h100:8"])
@pytest.mark.parametrize("recipe", RECIPES)
def test_recipes_fit(recipe: str, topology: str):
    config = load_settings(RouterTrainConfig, recipe)
    model = replace(model_shape(str(config.model)), router=config.router)
    assert make_plan(model, config, parse_topology(topology), 0.8).fits


def test_command_tells_what_fits_and_what_it_costs(capsys):
    common = ["--config", "router_qwen3_8b_64k", "--topology", "v6e:8x8", "--price", "2"]
    code, text = run(capsys, *common)
    assert code == 0 and text.splitlines()[-1] == "fits"
    code, text = run(capsys, *common, "--json")
    values = json.loads(text)
    assert code == 0 and values["fits"] and values["mesh"] == {"data": 1, "fsdp": 8, "tensor": 1, "context": 8}
    step = values["step"]["seconds"] / 3600 * 64 * 2
    assert values["price"]["step"] == pytest.approx(step)
    assert values["price"]["per_1000_tokens"] == pytest.approx(step / (48 * 65.536))
    assert "--mesh.context=-1" in values["overrides"] and "--optim.rows=8" in values["overrides"]


def test_flags_of_a_plan_win_over_the_mesh_of_the_recipe():
    plan = make_plan(QWEN, replace(RUN, mesh=MeshConfig(data=8, tensor=8)), parse_topology("v6e:8x8"), 0.8)
    again = overridden(RouterTrainConfig, "router_qwen3_8b_64k", [flag.removeprefix("--") for flag in overrides(plan)])
    assert again.mesh == plan.config.mesh != RUN.mesh


@pytest.mark.parametrize("refusal, code, last", [("", 0, "fits"), ("too large", 1, "does not fit")])
def test_command_ends_with_the_verdict_of_the_compiler(capsys, monkeypatch, refusal, code, last):
    answer = Compiled(1.0, GIB, GIB, 0, 1e12, 1e9, {}, refusal)
    monkeypatch.setattr("train.plan.compile.tpu_mesh", lambda config, topology: None)
    monkeypatch.setattr("train.plan.compile.compile_step", lambda model, config, mesh: answer)
    told, text = run(capsys, "--config", "router_qwen3_8b_64k", "--topology", "v6e:8x8", "--compile")
    assert told == code and text.splitlines()[-1] == f"{last}, by the compiler"


def test_command_fails_where_it_does_not_fit(capsys):
    code, text = run(capsys, "--config", "router_qwen3_8b_64k", "--topology", "v5e:2x4", "--mesh.context", "1")
    assert code == 1 and "does not fit" in text.splitlines()[-1]
    code, text = run(capsys, "--config", "router_qwen3_8b_64k", "--topology", "v5e:1x1", "--search", "--json")
    assert code == 1 and json.loads(text) == {"topology": "v5e:1x1", "fits": False}


def test_command_searches_and_explains(capsys):
    code, text = run(capsys, "--config", "router_qwen3_8b_64k", "--topology", "v6e:2x2", "--search", "--explain")
    assert code == 0 and "flags: --mesh." in text
    assert "layers.mlp.down_proj.kernel" in text and "GiB on each device, " in text


def test_command_refuses_in_one_line(capsys):
    assert cli.main(["plan", "--model", "qwen3-8b"]) == 2
    assert "no topology: give it with --topology NAME:SIZES" in capsys.readouterr().err
    assert cli.main(["plan", "--model", "qwen3-8b", "--topology", "a100:8", "--mesh.fsdp", "8", "--compile"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
