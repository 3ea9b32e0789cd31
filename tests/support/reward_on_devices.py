"""One step of reward training on meshes of eight simulated devices, started by `programs.reports`.

A case is KIND:AXIS=N,AXIS=N. Prints as JSON, for
each case, the largest difference of the loss and of Adam's averages of the gradient from one device, relative to the
largest entry, and over how many devices the largest array of the optimizer is divided.
"""

from __future__ import annotations

import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
from reward_batches import cut, judge_rows, pair_batch
from tiny import tiny_model, tiny_reward_model

from elastic_jax.sharding import MeshConfig, make_mesh
from elastic_jax.sharding.rules import param_shardings
from train.loop.distributed import placed
from train.reward.config import (
    AdamConfig,
    BradleyTerryTrainConfig,
    JudgeDataConfig,
    LoraConfig,
    SftConfig,
    SimpoTrainConfig,
)
from train.reward.objectives import bradley_terry_objective, sft_objective, simpo_objective
from train.reward.placement import batch_shardings, check_mesh, placed_state
from train.reward.step import first_state, make_step
from train.reward.weights import assemble


def main(cases: list[str]) -> None:
    optim = AdamConfig(steps=4, rows=8, warmup=0.0, learning_rate=1e-2)
    common = {"dtype": "float32", "remat": True, "optim": optim}
    data = JudgeDataConfig(row_length=128, max_segments=2)
    kinds = {
        "sft": (SftConfig(**common, data=data), sft_objective, tiny_model(), judge_rows(8, length=128)),
        "simpo": (SimpoTrainConfig(**common), simpo_objective, tiny_model(), pair_batch(8)),
        "simpo-apart": (
            SimpoTrainConfig(**common, layout="separate", routing="routers"),
            simpo_objective,
            tiny_model(),
            pair_batch(8),
        ),
        "bt": (
            BradleyTerryTrainConfig(**common, lora=LoraConfig(rank=2)),
            bradley_terry_objective,
            tiny_reward_model(),
            pair_batch(8),
        ),
    }
    alone, results = {}, {}
    for case in cases:
        kind, _, axes = case.partition(":")
        config, build, model, batch = kinds[kind]
        batch = cut(batch, 1)
        assembly, params, frozen = assemble(model, config.lora, block_size=None, seed=0)
        step = make_step(build(assembly, config), optim)
        if kind not in alone:
            alone[kind] = jax.device_get(step(first_state(jax.tree.map(jnp.array, params), optim), frozen, batch))
        sizes = {name: int(size) for name, size in (axis.split("=") for axis in axes.split(","))}
        mesh = make_mesh(MeshConfig(**sizes))
        check_mesh(config, mesh)
        with jax.set_mesh(mesh):
            state = placed_state(params, optim, mesh)
            largest = max(jax.tree.leaves(state.opt_state), key=lambda x: x.size)
            divided = len({str(shard.index) for shard in largest.addressable_shards})
            there = placed(frozen, param_shardings(frozen, mesh))
            on_devices = placed(batch, batch_shardings(batch, mesh, leading=1))
            state, metrics = jax.device_get(step(state, there, on_devices))
        want_state, want = alone[kind]
        worst = abs(float(metrics["loss"] - want["loss"]) / float(want["loss"]))
        leaves = (jax.tree.leaves(one.opt_state) for one in (state, want_state))
        for got, wanted in zip(*leaves, strict=True):
            worst = max(worst, float(np.abs(got - wanted).max() / (np.abs(wanted).max() + 1e-12)))
        results[case] = {"difference": worst, "divided": divided}
        print(case, results[case], file=sys.stderr, flush=True)
    print(json.dumps(results))


if __name__ == "__main__":
    main(sys.argv[1:])
