"""An estimate, without compiling, of a step of router training: bytes on one device, floating-point operations, bytes
between devices, time and price.
"""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax.sharding import AbstractMesh

from elastic_jax.config import ModelConfig
from elastic_jax.routing import streaming_skip_ratio
from elastic_jax.sharding.rules import device_bytes, param_specs, shards
from elastic_jax.weights.names import ROUTER_PREFIX
from train.config import RouterTrainConfig
from train.plan.chips import HOST_LINK, MATMUL_SHARE, Topology
from train.plan.shapes import stored_shapes
from train.token_losses import CHUNK


class LiveArrays(NamedTuple):
    """How many arrays of a size the program of a step has in memory at once, by what it is doing.

    The unit is one array of that size in the model's dtype, on one device; an array in float32 counts as two. The
    numbers cannot be derived, since the compiler decides what it keeps and what shares memory. They were chosen to
    match what the TPU compiler reserved for the 16 programs of docs/scaling.md (jax 0.11.2, libtpu 0.0.48.1): the
    relative error is 4.3 % (root mean square), where the best numbers in steps of a half have 3.7 %.
    `python benchmarks/fit_plan_memory.py` has these programs and fits the numbers again.
    """

    mlp_inner: float = 4.5
    """`[tokens, intermediate]`, while an MLP is differentiated: gate, up, their product, and gradients."""
    mlp_outer: float = 3.0
    """`[tokens, hidden]` at the same time: input and output of the MLP, and the gradient."""
    kept_queries: float = 3.0
    """`[tokens, heads, head_dim]` that attention keeps for its gradient: queries, output, and the
    difference of the two branches."""
    kept_keys: float = 3.0
    """`[row, KV heads, head_dim]` of whole rows that it keeps: keys and values, for early and for late queries."""
    keys: float = 11.0
    """The same while attention is differentiated: as gathered, in the order of the kernel, and the gradients, which are
    summed in float32."""
    queries: float = 4.0
    """`[tokens, heads, head_dim]` while attention is differentiated."""
    layer: float = 7.0
    """`[tokens, hidden]` that each layer keeps if nothing is recomputed, three of them in float32; the arrays of the
    MLP and those that attention keeps come on top."""


LIVE_ARRAYS = LiveArrays()


class Memory(NamedTuple):
    """Bytes on one device."""

    weights: int
    routers: int
    optimizer: int
    """Both moments of Adam, and the gradient that is summed."""
    batch: int
    layer_inputs: int
    """What is kept of every layer until the backward pass: its input, or all that it needs."""
    gathered: int
    """Weights of one layer, gathered over all mesh axes but `tensor`; with int8 weights also the largest of them in the
    model's dtype."""
    keys_and_values: int
    """Of whole rows with their gradients, while the attention of a layer is differentiated."""
    attention: int
    """What else the attention of a layer needs while it is differentiated."""
    mlp: int
    """While the MLP of a layer is differentiated, before attention is: its arrays, and what attention has kept."""
    head: int
    """Vocabulary matrix, logits of a chunk and the slope of the loss; not at the same time as a layer."""
    host: int
    """On the host, for each device: layer inputs that are kept there."""

    @property
    def arguments(self) -> int:
        return self.weights + self.routers + self.optimizer + self.batch

    @property
    def total(self) -> int:
        layer = self.gathered + max(self.keys_and_values + self.attention, self.mlp)
        return self.arguments + self.layer_inputs + max(layer, self.head)


def step_memory(
    model: ModelConfig, config: RouterTrainConfig, mesh: AbstractMesh, live: LiveArrays = LIVE_ARRAYS
) -> Memory:
    """Memory of one optimizer step.

    Raises:
        ConfigError: parameters that the mesh cannot divide.
    """
    item = jnp.dtype(config.dtype).itemsize
    shapes = stored_shapes(model, config.dtype, config.weights)
    each = device_bytes(shapes, mesh)
    routers = sum(size for path, size in each.items() if path.startswith(ROUTER_PREFIX))
    specs = param_specs(shapes, mesh)
    layer = [
        _whole_layer(path, each[path] * shards(specs[path], mesh), specs[path], mesh) // model.num_layers
        for path in each
        if path.startswith("layers.") and not path.startswith(ROUTER_PREFIX)
    ]
    converted = item * max(layer) if config.weights == "int8" else 0

    axes = mesh.shape
    rows = config.optim.rows / (axes["data"] * axes["fsdp"])
    tensor, tokens = axes["tensor"], rows * config.data.row_length / axes["context"]
    T, D, F = config.data.row_length, model.hidden_size, model.intermediate_size
    queries = tokens * model.num_heads * model.head_dim * item / tensor
    keys = rows * T * max(model.num_kv_heads / tensor, 1) * model.head_dim * item
    width, mlp = tokens * D * item, tokens * F * item / tensor
    kept = live.kept_queries * queries + live.kept_keys * keys
    inputs = model.num_layers * (width if config.remat else live.layer * width + live.mlp_inner * mlp + kept)
    offload = config.remat == "offload"
    return Memory(
        weights=sum(each.values()) - routers,
        routers=routers,
        optimizer=3 * routers,
        batch=round(config.optim.accumulate * config.gates.draws * tokens * 4 * 4),
        layer_inputs=round(2 * width if offload else inputs),
        gathered=sum(layer) + converted,
        keys_and_values=round(live.keys * keys),
        attention=round(live.queries * max(width, queries)),
        mlp=round(live.mlp_inner * mlp + live.mlp_outer * width + kept),
        head=round(D * model.vocab_size * item / tensor + 10 * CHUNK * model.vocab_size / tensor + 4 * width),
        host=round(inputs) if offload else 0,
    )


def _whole_layer(path: str, whole: int, spec: Any, mesh: AbstractMesh) -> int:
    """Bytes of a parameter once gathered over everything but `tensor`."""
    return whole // mesh.shape["tensor"] if "tensor" in str(spec) else whole


class Work(NamedTuple):
    """One optimizer step over all devices."""

    tokens: int
    matrix_flops: float
    attention_flops: float
    """With the routed share; what is computed again counts again."""
    full_attention_flops: float
    """Attention FLOPs if every head were full."""
    received: float
    """Bytes that one device receives: weights gathered for use, keys and values of other shards, sums."""
    offloaded: float
    """Bytes that one device sends to its host and reads back."""
    seconds: float
    """Compute and transfers one after the other; overlap is not counted."""


def step_work(
    model: ModelConfig, config: RouterTrainConfig, mesh: AbstractMesh, topology: Topology, sparse_share: float
) -> Work:
    """Work of one step on rows that hold one sample each, which have the most pairs of query and key.

    Frozen weights cost two products (forward, gradient of the input), three where layers are computed again. Routed
    attention runs the chosen branch forward and backward (2.5 times forward); computing again runs both branches, so
    that pass is always full.
    """
    D, H, N, K, L = model.hidden_size, model.head_dim, model.num_heads, model.num_kv_heads, model.num_layers
    T, axes = config.data.row_length, mesh.shape
    passes = config.optim.accumulate * config.gates.draws
    rows = config.optim.rows * passes
    weights = model.map_weights
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
