"""One step of every kind of reward training through the real TPU compiler, on slices that are not there."""

import dataclasses
import importlib.util
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from elastic_jax.config import ModelConfig, RouterConfig
from elastic_jax.model import param_shapes
from elastic_jax.sharding import MeshConfig
from elastic_jax.sharding.rules import param_shardings
from elastic_jax.weights.names import SCORE
from train.data.packing import Rows
from train.plan.chips import parse_topology
from train.plan.compile import tpu_mesh
from train.reward.config import (
    AdamConfig,
    BradleyTerryTrainConfig,
    JudgeDataConfig,
    LoraConfig,
    PairDataConfig,
    SftConfig,
    SimpoTrainConfig,
)
from train.reward.data.pairs import PairBatch
from train.reward.objectives import bradley_terry_objective, sft_objective, simpo_objective
from train.reward.placement import batch_shardings, check_mesh, state_shardings
from train.reward.step import first_state, make_step
from train.reward.weights import Assembly, fresh_lora

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

MODEL = ModelConfig(
    family="llama",
    vocab_size=4096,
    hidden_size=1024,
    intermediate_size=2048,
    num_layers=3,
    num_heads=8,
    num_kv_heads=4,
    head_dim=128,
    max_position_embeddings=16384,
    router=RouterConfig(),
)
OPTIM = AdamConfig(steps=10, rows=8, accumulate=2)
PAIRS = PairDataConfig(prompt_tokens=2048, response_tokens=256, rejects=2)
INT, FLOAT = jnp.int32, jnp.float32


def judge_rows(config: SftConfig) -> Rows:
    A, B, T, M = OPTIM.accumulate, OPTIM.rows, config.data.row_length, config.data.max_segments
    sizes, types = (T, T, T, T, M, M), (INT, INT, INT, FLOAT, INT, INT)
    return Rows(*(jax.ShapeDtypeStruct((A, B, size), kind) for size, kind in zip(sizes, types, strict=True)))


def pair_batch(config: SimpoTrainConfig | BradleyTerryTrainConfig) -> PairBatch:
    P, R, V = config.data.prompt_tokens, config.data.response_tokens, config.data.rejects
    shapes = ((P,), (), (1 + V, R), (1 + V,), ())
    types = (INT, INT, INT, INT, FLOAT)
    leading = OPTIM.accumulate, OPTIM.rows
    return PairBatch(*(jax.ShapeDtypeStruct((*leading, *s), t) for s, t in zip(shapes, types, strict=True)))


CASES: dict[str, tuple[Any, Any, Any, dict[str, int]]] = {
    "sft": (
        SftConfig(data=JudgeDataConfig(row_length=8192), routing="routers"),
        sft_objective,
        judge_rows,
        {"fsdp": 2, "context": 4},
    ),
    "simpo": (SimpoTrainConfig(data=PAIRS), simpo_objective, pair_batch, {"fsdp": 4, "tensor": 2}),
    "bt": (
        BradleyTerryTrainConfig(data=PAIRS, lora=LoraConfig(rank=8)),
        bradley_terry_objective,
        pair_batch,
        {"data": 2, "fsdp": 4},
    ),
    "bt, separate rows": (
        BradleyTerryTrainConfig(data=PAIRS, layout="separate", routing="routers", remat="offload"),
        bradley_terry_objective,
        pair_batch,
        {"fsdp": 2, "context": 4},
    ),
}


def learnt_and_frozen(config: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    shapes = param_shapes(MODEL, "bfloat16")
    if config.lora.rank:
        sizes = {path: x.shape for path, x in shapes.items()}
        learnt = jax.eval_shape(lambda: fresh_lora(sizes, config.lora.targets, rank=config.lora.rank, seed=0))
        frozen = dict(shapes)
    else:
        frozen = {path: x for path, x in shapes.items() if path.startswith("layers.router.")}
        learnt = {path: jax.ShapeDtypeStruct(x.shape, FLOAT) for path, x in shapes.items() if path not in frozen}
    if isinstance(config, BradleyTerryTrainConfig):
        learnt[SCORE] = jax.ShapeDtypeStruct((MODEL.hidden_size, 1), FLOAT)
    return learnt, frozen


def placed(shapes: Any, shardings: Any) -> Any:
    def put(sharding: Any, below: Any) -> Any:
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), below)

    return jax.tree.map(put, shardings, shapes)


@pytest.mark.parametrize("topology", ["v5e:2x4", "v5p:2x2x2", "v6e:2x4"])
@pytest.mark.parametrize("case", CASES)
def test_a_step_compiles_with_the_tpu_kernels_inside(case: str, topology: str) -> None:
    if importlib.util.find_spec("libtpu") is None:
        pytest.skip("libtpu is not installed; pip install 'elastic-jax[tpu-aot]' to compile for TPU")
    config, objective, batch_of, axes = CASES[case]
    config = dataclasses.replace(config, optim=OPTIM, mesh=MeshConfig(**axes))
    mesh = tpu_mesh(config, parse_topology(topology))
    check_mesh(config, mesh)
    learnt, frozen = learnt_and_frozen(config)
    state = jax.eval_shape(lambda params: first_state(params, OPTIM), learnt)
    batch = batch_of(config)
    assembly = Assembly(MODEL, jnp.dtype(jnp.bfloat16), config.lora)
    step: Any = make_step(objective(assembly, config), OPTIM)
    operands = (
        placed(state, state_shardings(learnt, OPTIM, mesh)),
        placed(frozen, param_shardings(frozen, mesh)),
        placed(batch, batch_shardings(batch, mesh, leading=1)),
    )
    with jax.set_mesh(mesh):
        compiled = step.lower(*operands).compile()
    print(case, topology, f"{compiled.memory_analysis().temp_size_in_bytes / 2**20:.0f} MiB of temporaries")
    assert "tpu_custom_call" in compiled.as_text()
