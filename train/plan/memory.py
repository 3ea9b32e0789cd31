"""Bytes that a step of router training needs on one device: an estimate, without compiling.

The parts that follow from shapes alone (weights, routers, optimizer, batch, layer inputs) are exact. What a layer needs
while it is computed again and differentiated is counted in arrays that are alive at once; the numbers of arrays were
fitted to what the TPU compiler reports (`docs/scaling.md` has both).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax.numpy as jnp
from jax.sharding import AbstractMesh

from elastic_jax.config import ModelConfig
from elastic_jax.sharding import device_bytes, param_specs, shards
from train.config import RouterTrainConfig
from train.plan.models import stored_shapes

ROUTER_PREFIX = "layers.router."
CE_CHUNK = 512
"""Tokens whose logits exist at once; the default of `train.losses.token_nll`."""
LIVE_MLP = 4.5
"""Arrays as wide as the MLP, while it is differentiated: gate, up, their product, and gradients."""
LIVE_WIDTH = 3.0
"""Arrays as wide as the model beside them."""
SAVED_HEADS = 3.0
"""Arrays as wide as all query heads that attention keeps meanwhile: queries, output, difference of the branches."""
SAVED_KV = 3.0
"""Arrays of the keys of whole rows that it keeps: keys and values, for early and for late queries."""
LIVE_KV = 11.0
"""The same while attention is differentiated: as gathered, in the order of the kernel, and the gradients, which are
summed in float32."""
LIVE_HEADS = 4.0
"""Arrays as wide as all query heads then."""
KEPT_WIDTH = 7.0
"""Without recomputation, arrays as wide as the model that every layer keeps, three of them in float32; and besides, the
arrays of the MLP and of attention above."""


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
    """Weights of one layer, whole but for `tensor`; of int8 ones, the largest in the model's dtype besides."""
    keys_and_values: int
    """Of whole rows with their gradients, while the attention of a layer is differentiated."""
    attention: int
    """All else that attention needs then."""
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


def step_memory(model: ModelConfig, config: RouterTrainConfig, mesh: AbstractMesh) -> Memory:
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
    kept = SAVED_HEADS * queries + SAVED_KV * keys
    inputs = model.num_layers * (width if config.remat else KEPT_WIDTH * width + LIVE_MLP * mlp + kept)
    offload = config.remat == "offload"
    return Memory(
        weights=sum(each.values()) - routers,
        routers=routers,
        optimizer=3 * routers,
        batch=round(config.optim.accumulate * config.gates.draws * tokens * 4 * 4),
        layer_inputs=round(2 * width if offload else inputs),
        gathered=sum(layer) + converted,
        keys_and_values=round(LIVE_KV * keys),
        attention=round(LIVE_HEADS * max(width, queries)),
        mlp=round(LIVE_MLP * mlp + LIVE_WIDTH * width + kept),
        head=round(D * model.vocab_size * item / tensor + 10 * CE_CHUNK * model.vocab_size / tensor + 4 * width),
        host=round(inputs) if offload else 0,
    )


def _whole_layer(path: str, whole: int, spec: Any, mesh: AbstractMesh) -> int:
    """Bytes of a parameter once gathered over everything but `tensor`."""
    return whole // mesh.shape["tensor"] if "tensor" in str(spec) else whole
