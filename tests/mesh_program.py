"""What needs eight simulated devices, run as a program because their number must be set before jax starts.

`python tests/mesh_program.py` prints one JSON object: the result of each check by its name.
"""

from __future__ import annotations

import json
import os
from typing import Any


def meshes() -> dict[str, Any]:
    """Shapes that `make_mesh` gives, and that rows and tokens go where a batch sharding says."""
    import jax
    import numpy as np

    from elastic_jax.sharding import MeshConfig, batch_sharding, make_mesh

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


def main() -> None:
    os.environ |= {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_force_host_platform_device_count=8"}
    print(json.dumps({"meshes": meshes()}))


if __name__ == "__main__":
    main()
