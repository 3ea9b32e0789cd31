"""What needs eight simulated devices, started by `programs.reports`.

Prints one JSON object: the result of each check by its name.
"""

from __future__ import annotations

import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from checkpoints import GOLDEN

from elastic_jax.int8_linear import quantize_layers
from elastic_jax.model import to_params
from elastic_jax.sharding import MeshConfig, make_mesh
from elastic_jax.sharding.rules import batch_sharding, param_shardings
from elastic_jax.weights import from_pretrained
from elastic_jax.weights.safetensors_dir import SafetensorsFiles
from train.token_losses import token_nll


def meshes() -> dict[str, Any]:
    """Shapes that `make_mesh` gives, and that rows and tokens go where a batch sharding says."""
    mesh = make_mesh(MeshConfig(data=-1, fsdp=2, context=2))
    batch = jax.device_put(np.arange(3 * 8 * 6).reshape(3, 8, 6), batch_sharding(mesh, leading=1))
    per_row = jax.device_put(np.arange(8), batch_sharding(mesh, tokens=False))
    half = make_mesh(MeshConfig(tensor=4), jax.devices()[:4])
    return {
        "shape": dict(mesh.shape),
        "auto": all(kind.name == "Auto" for kind in mesh.axis_types),
        "batch_shard": batch.addressable_shards[0].data.shape,
        "row_shard": per_row.addressable_shards[0].data.shape,
        "half": [device.id for device in half.devices.flat],
    }


def loads(name: str, **axes: int) -> dict[str, Any]:
    """A golden checkpoint read onto eight devices, beside the same on one: differences, and what was read."""
    whole = to_params(from_pretrained(GOLDEN / name))
    read, given = SafetensorsFiles.read, []

    def noting(*arguments: Any) -> Any:
        given.append(read(*arguments))
        return given[-1]

    SafetensorsFiles.read = noting
    mesh = make_mesh(MeshConfig(**axes))
    divided = to_params(from_pretrained(GOLDEN / name, mesh=mesh))
    SafetensorsFiles.read = read
    wanted = param_shardings(whole, mesh)
    layers = {path: x.shape[0] if path.startswith("layers.") else 1 for path, x in divided.items()}
    return {
        "different": [path for path, x in divided.items() if not np.array_equal(jax.device_get(x), whole[path])],
        "misplaced": [path for path, x in divided.items() if not x.sharding.is_equivalent_to(wanted[path], x.ndim)],
        "largest_read": max(array.nbytes for array in given),
        "largest_block": max(x.addressable_shards[0].data.nbytes // layers[path] for path, x in divided.items()),
        "all_read": sum(array.nbytes for array in given),
        "stored": sum(x.nbytes for path, x in whole.items() if not path.startswith("layers.router.")),
    }


def rounded(name: str, **axes: int) -> dict[str, Any]:
    """Layers made int8 where they are, on eight devices and on one: differences, places, and int8 bytes of a device."""
    mesh = make_mesh(MeshConfig(**axes))
    models = from_pretrained(GOLDEN / name), from_pretrained(GOLDEN / name, mesh=mesh)
    for model in models:
        quantize_layers(model)
    whole, divided = map(to_params, models)
    wanted = param_shardings(whole, mesh)
    values = [x for x in divided.values() if x.dtype == np.int8]
    return {
        "maps": len(values),
        "different": [path for path, x in divided.items() if not np.array_equal(jax.device_get(x), whole[path])],
        "misplaced": [path for path, x in divided.items() if x.sharding != wanted[path]],
        "share": sum(x.addressable_shards[0].data.nbytes for x in values) / sum(x.nbytes for x in values),
    }


def nll(**axes: int) -> dict[str, float]:
    """Cross-entropy of tokens and its slope over a mesh: the largest difference from one device."""
    rng = np.random.default_rng(0)
    hidden, head = rng.normal(size=(4, 24, 16)), rng.normal(size=(16, 64))
    labels = rng.integers(0, 64, (4, 24))
    needed = rng.random((4, 24)) < 0.7
    needed[:2] = False  # some devices have nothing to do

    def run(hidden: Any, head: Any, labels: Any, needed: Any) -> Any:
        out, pull = jax.vjp(lambda x: token_nll(x, head, labels, needed, 8), hidden)
        return out, pull(jnp.cos(out))[0]

    whole = [jnp.asarray(x, kind) for x, kind in ((hidden, "float32"), (head, "float32"), (labels, "int32"))]
    wanted = jax.jit(run)(*whole, jnp.asarray(needed))
    mesh = make_mesh(MeshConfig(**axes))
    by_token = batch_sharding(mesh)
    by_rule = param_shardings({"lm_head.kernel": whole[1]}, mesh)["lm_head.kernel"]
    places = (by_token, by_rule, by_token, by_token)
    divided = [jax.device_put(x, place) for x, place in zip((*whole, jnp.asarray(needed)), places, strict=True)]
    with jax.set_mesh(mesh):
        found = jax.jit(run)(*divided)
    errors = jax.tree.map(lambda a, b: float(np.abs(np.asarray(a) - np.asarray(b)).max()), found, wanted)
    return {"error": max(errors), "largest": float(np.abs(np.asarray(wanted[1])).max())}


def main() -> None:
    checks = {
        "meshes": meshes(),
        "load": loads("qwen3_untied", fsdp=2, tensor=2, context=2),
        "load_replicas": loads("llama_bias", data=4, fsdp=2),
        "load_unshared_heads": loads("qwen2", data=2, tensor=4),
        "rounded": rounded("qwen3_untied", fsdp=2, tensor=2, context=2),
        "nll": nll(fsdp=2, tensor=2, context=2),
        "nll_whole_vocabulary": nll(data=4, context=2),
    }
    print(json.dumps(checks))


if __name__ == "__main__":
    main()
