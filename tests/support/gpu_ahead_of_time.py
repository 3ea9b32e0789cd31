"""Compiles programs for GPUs that are not there, through XLA's compile-only CUDA topology.

Run as a program, because a process can serve one GPU architecture only and settings must precede jax:

* `gpu_ahead_of_time.py hopper FOLDER HEAD_DIM` compiles hybrid attention with the Mosaic GPU kernel for an
  H100 and writes what the assembler says into the folder.
* `gpu_ahead_of_time.py sharded CHIP IMPL` compiles prefill and a training step for eight `a100` or `h100`,
  two in the batch by four in the heads.

Each program gives a line of JSON: its custom calls, its collectives, and the bytes of one device.
"""

from __future__ import annotations

import atexit
import json
import os
import re
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

GPU = """gpu_device_info {{
  threads_per_block_limit: 1024  threads_per_warp: 32  threads_per_core_limit: 2048
  shared_memory_per_block: 49152  {chip}
  block_dim_limit_x: 2147483647  block_dim_limit_y: 65535  block_dim_limit_z: 65535
  thread_dim_limit_x: 1024  thread_dim_limit_y: 1024  thread_dim_limit_z: 64
  registers_per_core_limit: 65536  registers_per_block_limit: 65536
  driver_version: "13.0.0"  runtime_version: "13.0.0"  compile_time_toolkit_version: "13.0.0"
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 10 }}
runtime_version {{ major: 13 minor: 0 patch: 0 }}
device_description_str: "{name}"
"""
A100 = GPU.format(
    name="NVIDIA A100-SXM4-80GB",
    chip="""shared_memory_per_core: 167936  shared_memory_per_block_optin: 166912
  core_count: 108  fpus_per_core: 64  clock_rate_ghz: 1.41
  memory_bandwidth: 2039040000000  l2_cache_size: 41943040  device_memory_size: 85100068864
  cuda_compute_capability { major: 8 feature_extension: NONE }""",
)
H100 = GPU.format(
    name="NVIDIA H100 80GB HBM3",
    chip="""shared_memory_per_core: 233472  shared_memory_per_block_optin: 232448
  core_count: 132  fpus_per_core: 128  clock_rate_ghz: 1.98
  memory_bandwidth: 3352320000000  l2_cache_size: 52428800  device_memory_size: 84942979072
  cuda_compute_capability { major: 9 feature_extension: ACCELERATED_FEATURES }""",
)


def report(name: str, program: Any, *arguments: Any) -> None:
    from divided_ops import COLLECTIVES

    compiled = program.trace(*arguments).lower(lowering_platforms=("cuda",)).compile()
    text, memory = compiled.as_text(), compiled.memory_analysis()
    words = {
        "program": name,
        "calls": sorted(set(re.findall(r'custom_call_target="([^"]+)"', text))),
        "collectives": sorted(set(re.findall(COLLECTIVES, text))),
        "arguments": memory.argument_size_in_bytes,
        "outputs": memory.output_size_in_bytes,
        "temporaries": memory.temp_size_in_bytes,
    }
    print(json.dumps(words))


def hopper(folder: str, head_dim: str) -> None:
    os.environ |= {"MOSAIC_GPU_DUMP_PTXAS": "1", "MOSAIC_GPU_DUMP_TO": folder}
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

    q, kv = (shape(1, 8192, heads, int(head_dim)) for heads in (32, 8))
    with jax.default_device(devices[0]):
        program = jax.jit(lambda q, k, v, mode: hybrid_attention(q, k, v, mode, impl="mosaic_gpu"))
        report("prefill", program, q, kv, kv, shape(1, 8, dtype=jnp.int32))


def use_newest_assembler() -> None:
    """XLA takes the `ptxas` of the PATH, and an old one refuses what XLA writes; Triton brings a new one."""
    import triton

    folder = Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, folder)
    (folder / "ptxas").symlink_to(Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "ptxas-blackwell")
    os.environ["PATH"] = f"{folder}:{os.environ['PATH']}"


def sharded(chip: str, impl: str) -> None:
    use_newest_assembler()
    import jax
    import jax.numpy as jnp
    import numpy as np
    from jax.experimental import topologies
    from jax.sharding import Mesh, NamedSharding, PartitionSpec

    from pallas_kernels import hybrid_attention, routed_attention

    config = {"a100": A100, "h100": H100}[chip]
    devices = topologies.get_topology_desc("", platform="cuda", target_config=config, topology="1x1x8").devices
    mesh = Mesh(np.reshape(devices, (2, 4)), ("data", "tensor"))

    def shape(*sizes: int, dtype: jnp.dtype = jnp.bfloat16) -> jax.ShapeDtypeStruct:
        spec = PartitionSpec("data", None, "tensor") if len(sizes) == 4 else PartitionSpec("data", "tensor")
        return jax.ShapeDtypeStruct(sizes, dtype, sharding=NamedSharding(mesh, spec))

    def step(q, k, v, z):
        out, pull = jax.vjp(lambda *operands: routed_attention(*operands, impl=impl), q, k, v, z)
        return pull(out)

    q, kv = (shape(4, 16384, heads, 128) for heads in (32, 8))
    with jax.default_device(devices[0]):
        prefill = jax.jit(lambda q, k, v, z: hybrid_attention(q, k, v, (z < 0.5).astype(jnp.int8), impl=impl))
        for name, program in {"prefill": prefill, "training step": jax.jit(step)}.items():
            if (name, impl) != ("training step", "mosaic_gpu"):
                report(name, program, q, kv, kv, shape(4, 8, dtype=jnp.float32))


if __name__ == "__main__":
    os.environ |= {
        "JAX_PLATFORMS": "cpu",
        "JAX_SKIP_CUDA_CONSTRAINTS_CHECK": "1",
        "JAX_ENABLE_COMPILATION_CACHE": "false",
    }
    {"hopper": hopper, "sharded": sharded}[sys.argv[1]](*sys.argv[2:])
