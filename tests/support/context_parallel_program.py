"""Attention and a model on eight simulated devices, started by `programs.reports`.

Prints as JSON, for each named check, how far its result is from that of one device.
"""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from attention_cases import Case, make_inputs
from divided_ops import COLLECTIVES
from tiny import CONFIG, tiny_model

from elastic_jax.config import RouterConfig
from elastic_jax.layout import make_layout
from elastic_jax.model import from_params, to_params
from elastic_jax.router import pool_keys, pooling_weights
from elastic_jax.sharding import MeshConfig, make_mesh
from elastic_jax.sharding import attention as attention_on_mesh
from elastic_jax.sharding.attention import on_mesh
from elastic_jax.sharding.rules import batch_sharding, param_shardings
from pallas_kernels import dual_attention, hybrid_attention, routed_attention, select_blocks
from train.data.packing import Rows


def mesh_of(**sizes: int):
    return make_mesh(MeshConfig(**sizes), jax.devices()[: math.prod(sizes.values())])


def worst(got: Any, wanted: Any) -> float:
    """Largest difference, relative to the largest value of each array or to 1."""

    def error(a: Any, b: Any) -> float:
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        assert a.shape == b.shape and (np.isfinite(a) == np.isfinite(b)).all()
        a, b = a[np.isfinite(b)], b[np.isfinite(b)]
        return float(np.abs(a - b).max(initial=0.0) / max(1.0, np.abs(b).max(initial=0.0)))

    return max(jax.tree.leaves(jax.tree.map(error, got, wanted)))


def attention(case: Any, sizes: dict[str, int], op: str, halo: bool, impl: str = "reference") -> dict[str, Any]:
    """Outputs and gradients of an op on a mesh against one device, with the exchange set; KV head 0 is all sparse."""
    attention_on_mesh.halo_is_cheaper = lambda *_: halo
    inputs = make_inputs(case)
    mode = inputs.mode.at[..., 0].set(1)
    arrays = {name: inputs.options.pop(name) for name in ("lengths", "segment_ids")}
    arrays = {name: x for name, x in arrays.items() if x is not None}

    def run(place: Any, q: Any, k: Any, v: Any, choice: Any, d_out: Any, arrays: dict[str, Any]) -> Any:
        options = inputs.options | arrays | {"impl": impl}
        if op == "routed":
            out, pull = jax.vjp(lambda *a: place(routed_attention)(*a, **options), q, k, v, choice)
            return out, pull(d_out)
        if op == "dual":
            out, pull = jax.vjp(lambda *a: place(dual_attention)(*a, **options), q, k, v)
            return out, pull((d_out, jnp.sin(d_out)))
        lse = op == "hybrid with lse"
        out, pull = jax.vjp(lambda *a: place(hybrid_attention)(*a, choice, return_lse=lse, **options), q, k, v)
        return out, pull((d_out, jnp.cos(d_out[..., 0])) if lse else d_out)

    choice = (mode == 0).astype(jnp.float32) if op == "routed" else mode
    operands = (inputs.q, inputs.k, inputs.v, choice, inputs.d_out, arrays)
    wanted = jax.jit(partial(run, lambda op: op))(*operands)
    with jax.set_mesh(mesh_of(**sizes)):
        compiled = jax.jit(partial(run, on_mesh)).lower(*operands).compile()
    return {
        "error": worst(compiled(*operands), wanted),
        "collectives": sorted(set(re.findall(COLLECTIVES, compiled.as_text()))),
    }


def chosen_blocks(case: Any, sizes: dict[str, int]) -> dict[str, Any]:
    """Share of blocks that are chosen otherwise on a mesh."""
    inputs = make_inputs(case)
    arrays = {name: x for name in ("lengths", "segment_ids") if (x := inputs.options[name]) is not None}

    def run(place: Any, q: Any, k: Any, heads: Any, arrays: dict[str, Any]) -> Any:
        return place(select_blocks)(q, k, heads=heads, stride=4, block_size=case.block, **arrays)

    heads = inputs.mode.reshape(case.batch, -1, case.kv_heads).astype(bool).any(1)
    operands = inputs.q, inputs.k, heads, arrays
    wanted = jax.jit(partial(run, lambda op: op))(*operands)
    with jax.set_mesh(mesh_of(**sizes)):
        got = jax.jit(partial(run, on_mesh))(*operands)
    return {"error": float((got != wanted).mean()), "kept": float(wanted.mean())}


def pooling(mode: str) -> dict[str, float]:
    """Pooled keys of packed rows whose tokens are divided."""
    ids = Case("", 128, batch=2, segments=((50, 60), (100, 1))).segment_ids()
    keys = jnp.asarray(np.random.default_rng(0).normal(size=(2, 128, 2, 8)), jnp.float32)
    prompts = jnp.array([[45, 60], [70, 1]])

    def run(keys, ids):
        layout = make_layout((2, 128), segment_ids=ids, num_segments=2)
        return pool_keys(keys, pooling_weights(layout, prompts, RouterConfig(pooling=mode, pool_window=20)), layout)

    mesh = mesh_of(data=2, context=4)
    placed = [jax.device_put(x, batch_sharding(mesh)) for x in (keys, ids)]
    return {"error": worst(jax.jit(run)(*placed), jax.jit(run)(keys, ids))}


def packed_rows() -> Any:
    """Eight rows of 128 tokens with up to three samples each, as the pipeline makes them."""
    rng = np.random.default_rng(5)
    ids, labels = rng.integers(0, CONFIG.vocab_size, (2, 1, 8, 128)).astype(np.int32)
    segments, weights = np.zeros((1, 8, 128), np.int32), np.zeros((1, 8, 128), np.float32)
    prompts, tasks = np.zeros((1, 8, 3), np.int32), np.full((1, 8, 3), -1, np.int32)
    for row in range(8):
        at = 0
        for index, size in enumerate([(128,), (100, 9), (17, 90), (40, 30, 25)][row % 4]):
            segments[0, row, at : at + size] = index + 1
            weights[0, row, at : at + size - 1] = 1 / max(size - 1, 1)
            prompts[0, row, index], tasks[0, row, index] = size // 2, (row + index) % 5
            at += -(-size // CONFIG.router.block_size) * CONFIG.router.block_size
    return Rows(ids, segments, labels, weights, prompts, tasks)


def model() -> dict[str, float]:
    """Logits and router logits of a tiny model whose routers decide, on packed rows."""
    made = tiny_model()
    rows = packed_rows()

    def run(params: Any, ids: Any, segment_ids: Any) -> Any:
        out = from_params(made.config, params)(ids, segment_ids=segment_ids)
        return out.logits, out.routing.logits

    mesh = mesh_of(tensor=2, context=4)
    params, ids = to_params(made), (rows.input_ids[0, :4], rows.segment_ids[0, :4])
    wanted = jax.jit(run)(params, *ids)
    placed = jax.device_put((params, *ids), (param_shardings(params, mesh), *(batch_sharding(mesh),) * 2))
    with jax.set_mesh(mesh):
        return {"error": worst(jax.jit(run)(*placed), wanted)}


def make_checks() -> dict[str, dict[str, Callable[[], dict[str, Any]]]]:
    """The checks by name, in groups."""

    def case(keys: int, **changes: Any) -> Case:
        return Case(
            "", keys, **({"kv_heads": 2, "groups": 2, "head_dim": 8, "batch": 2, "block": 8, "local": 3} | changes)
        )

    packed = case(128, sink=2, segments=((128,), (9, 1, 100)))
    far = case(128, sink=3, local=7, batch=1, lengths=(121,))
    odd = case(150, lengths=(150, 37))
    window = case(160, window=30, segments=((50, 100), (9, 1, 110)))
    return {
        "fast": {
            "packed, halo": partial(attention, packed, {"data": 2, "context": 4}, "hybrid", True),
            "packed, all keys": partial(attention, packed, {"tensor": 2, "context": 4}, "routed", False),
            "window, halo": partial(attention, window, {"context": 4}, "routed", True),
            "chosen blocks": partial(chosen_blocks, packed, {"data": 2, "tensor": 4}),
            "model": model,
        },
        "slow": {
            "halo over several shards": partial(attention, far, {"context": 8}, "hybrid with lse", True),
            "tokens that do not divide": partial(attention, odd, {"tensor": 4, "context": 2}, "routed", False),
            "window, all keys": partial(attention, window, {"context": 2}, "hybrid", False),
            "both outputs": partial(attention, odd, {"context": 2}, "dual", False),
            "rows and heads only": partial(attention, packed, {"data": 2, "tensor": 4}, "routed", False),
            "blocks of the ops, halo": partial(attention, packed, {"context": 4}, "hybrid", True, "xla"),
            "blocks of the ops, all keys": partial(attention, packed, {"context": 4}, "routed", False, "xla"),
            "pooling, boundary": partial(pooling, "boundary"),
            "pooling, prompt": partial(pooling, "prompt"),
        },
    }


if __name__ == "__main__":
    for name, check in make_checks()[sys.argv[1]].items():
        print(json.dumps({"check": name} | check()), flush=True)
