"""Floating-point operations, bytes between devices, time and price of a step of router training: an estimate."""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax.sharding import AbstractMesh

from elastic_jax.config import ModelConfig
from elastic_jax.routing import streaming_skip_ratio
from train.config import RouterTrainConfig
from train.plan.chips import HOST_LINK, MATMUL_SHARE, Topology


class Work(NamedTuple):
    """One optimizer step over all devices."""

    tokens: int
    matrix_flops: float
    attention_flops: float
    """With the routed share; what is computed again counts again."""
    full_attention_flops: float
    """The same with every head full."""
    received: float
    """Bytes that one device receives: weights gathered for use, keys and values of other shards, sums."""
    offloaded: float
    """Bytes that one device sends to its host and reads back."""
    seconds: float
    """All of these one after the other: nothing is taken to overlap."""


def step_work(
    model: ModelConfig, config: RouterTrainConfig, mesh: AbstractMesh, topology: Topology, sparse_share: float
) -> Work:
    """Work of one step on rows that hold one sample each, the dearest case.

    Frozen weights cost two products (forward, gradient of the input), three where layers are computed again. Routed
    attention runs the chosen branch forward and backward (2.5 times forward); computing again runs both branches, so
    that pass is always full.
    """
    D, H, N, K, L = model.hidden_size, model.head_dim, model.num_heads, model.num_kv_heads, model.num_layers
    T, axes = config.data.row_length, mesh.shape
    passes = config.optim.accumulate * config.gates.draws
    rows = config.optim.rows * passes
    weights = L * (2 * D * H * (N + K) + 3 * D * model.intermediate_size)
    products = 3 if config.remat else 2
    matrix = rows * T * (2 * products * weights + 4 * D * model.vocab_size)

    pair_flops = 4 * N * H * L * rows * T * (T + 1) / 2
    skipped = sparse_share * _streaming_skip(T, model)
    again = 1.0 if config.remat else 0.0
    first = (1 - skipped) if config.remat else 1.0
    attention = pair_flops * (first + again + 2.5 * (1 - skipped))

    item = 2 if config.dtype == "bfloat16" else 4
    divided = axes["fsdp"] * axes["context"]
    stored = 1 if config.weights == "int8" else item
    gathers = (products + 1) / 2 * (1 - 1 / divided) * weights * stored / axes["tensor"] * passes
    local_rows = rows / (axes["data"] * axes["fsdp"])
    shard = T / axes["context"]
    kv = (
        2 * local_rows * (T - shard) * max(K / axes["tensor"], 1) * H * L * (2 * item + 4 if config.remat else item + 4)
    )
    sums = 4 * L * local_rows * shard * D * item * products * (1 - 1 / axes["tensor"])
    received = gathers + kv + sums

    offloaded = 2 * L * local_rows * shard * D * item if config.remat == "offload" else 0.0
    chip = topology.chip
    devices = np.prod(list(axes.values()))
    compute = (matrix / MATMUL_SHARE + attention / chip.attention) / (devices * chip.flops)
    return Work(
        tokens=rows // config.gates.draws * T,
        matrix_flops=matrix,
        attention_flops=attention,
        full_attention_flops=pair_flops * (1 + again + 2.5),
        received=received,
        offloaded=offloaded,
        seconds=float(compute + received / chip.links + offloaded / HOST_LINK),
    )


@cache
def _streaming_skip(tokens: int, model: ModelConfig) -> float:
    return float(np.asarray(streaming_skip_ratio(jnp.array([tokens]), model))[0])


def default_sparse_share(config: RouterTrainConfig) -> float:
    """Mean of the middles of the tasks' targets."""
    return float(np.mean([sum(task.target) / 2 for task in config.tasks.by_id]))
