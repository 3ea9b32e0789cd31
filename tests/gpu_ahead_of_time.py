"""Compiles programs for an H100 that is not there, through XLA's compile-only CUDA topology.

Run as a program, because a process can serve one GPU architecture only and settings must precede jax:
`python tests/gpu_ahead_of_time.py FOLDER HEAD_DIM` compiles hybrid attention with the Mosaic GPU kernel, writes what
the assembler says into the folder, and prints as JSON the custom calls of the program and the bytes of its temporaries.
"""

from __future__ import annotations

import json
import os
import re
import sys
from pathlib import Path

H100 = """gpu_device_info {
  threads_per_block_limit: 1024  threads_per_warp: 32  threads_per_core_limit: 2048
  shared_memory_per_block: 49152  shared_memory_per_core: 233472  shared_memory_per_block_optin: 232448
  core_count: 132  fpus_per_core: 128  clock_rate_ghz: 1.98
  block_dim_limit_x: 2147483647  block_dim_limit_y: 65535  block_dim_limit_z: 65535
  thread_dim_limit_x: 1024  thread_dim_limit_y: 1024  thread_dim_limit_z: 64
  memory_bandwidth: 3352320000000  l2_cache_size: 52428800  device_memory_size: 84942979072
  cuda_compute_capability { major: 9 feature_extension: ACCELERATED_FEATURES }
  registers_per_core_limit: 65536  registers_per_block_limit: 65536
  driver_version: "13.0.0"  runtime_version: "13.0.0"  compile_time_toolkit_version: "13.0.0"
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 10 }
runtime_version { major: 13 minor: 0 patch: 0 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""


def main(folder: Path, head_dim: int) -> None:
    os.environ |= {
        "JAX_PLATFORMS": "cpu",
        "JAX_SKIP_CUDA_CONSTRAINTS_CHECK": "1",
        "JAX_ENABLE_COMPILATION_CACHE": "false",
        "MOSAIC_GPU_DUMP_PTXAS": "1",
        "MOSAIC_GPU_DUMP_TO": str(folder),
    }
    import jax
    import jax.numpy as jnp
    import numpy as np
    from jax.experimental import topologies
    from jax.sharding import Mesh, NamedSharding, PartitionSpec

    from pallas_kernels import hybrid_attention

    devices = topologies.get_topology_desc("", platform="cuda", target_config=H100, topology="1x1x1").devices
    sharding = NamedSharding(Mesh(np.asarray(devices), ("data",)), PartitionSpec())

    def shape(*sizes: int, dtype: jnp.dtype = jnp.bfloat16) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(sizes, dtype, sharding=sharding)

    kv = shape(1, 8192, 8, head_dim)
    with jax.default_device(devices[0]):
        program = jax.jit(lambda q, k, v, mode: hybrid_attention(q, k, v, mode, impl="mosaic_gpu"))
        lowered = program.trace(shape(1, 8192, 32, head_dim), kv, kv, shape(1, 8, dtype=jnp.int32)).lower(
            lowering_platforms=("cuda",)
        )
    compiled = lowered.compile()
    calls = sorted(set(re.findall(r'custom_call_target="([^"]+)"', compiled.as_text())))
    print(json.dumps({"calls": calls, "temporaries": compiled.memory_analysis().temp_size_in_bytes}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
