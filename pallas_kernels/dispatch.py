"""Choice of the implementation of an op. A named implementation never falls back to another."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import cache
from importlib import import_module

import jax

from pallas_kernels.call import AttentionCall

PLANNED = ("tpu", "triton", "mosaic_gpu")


def deferred(module: str, name: str) -> Callable:
    """A function of a module that is imported at the first call only: its toolchain may be absent, or slow to load."""

    def call(*arguments, **options):
        return getattr(import_module(module), name)(*arguments, **options)

    return call


def nvidia_capability() -> int | None:
    """Compute capability of the default device, times 10 (90 for an H100); None if it is no NVIDIA GPU.

    A device of a compile-only topology does as well: set `jax.default_device`.
    """
    device = jax.config.jax_default_device
    if device is None or isinstance(device, str):
        device = jax.devices(device)[0]
    version = re.fullmatch(r"(\d+)\.(\d+)", str(getattr(device, "compute_capability", "")))
    return None if version is None else 10 * int(version[1]) + int(version[2])


def preferred() -> tuple[str, ...]:
    """Names of the implementations for the default platform, the best first.

    A mesh in use that is made of TPUs counts more: it may be one that programs are only compiled for.
    """
    device = jax.sharding.get_abstract_mesh().abstract_device
    platform = "tpu" if device is not None and device.platform == "tpu" else jax.default_backend()
    if platform != "gpu":
        return (platform, "xla")
    capability = nvidia_capability() or 0
    if capability == 90:
        return ("mosaic_gpu", "triton", "xla")
    return ("triton", "xla") if capability >= 80 else ("xla",)


def kernel_takes(name: str, call: AttentionCall) -> bool:
    """Whether implementation `name` takes the block size of a call, and its masks with so many query heads a KV head.

    The limits are those of the kernels, whose modules are loaded only when they are in question.
    """
    if name == "tpu":
        from pallas_kernels.tpu.limits import LANES
        from pallas_kernels.tpu.plan import MAX_LISTED_GROUPS

        return call.spec.block_size % LANES == 0 and not (call.has_masks and call.groups > MAX_LISTED_GROUPS)
    if name in ("triton", "mosaic_gpu"):
        from pallas_kernels.gpu.tuning import SMALLEST_TILE

        return call.spec.block_size % SMALLEST_TILE == 0
    return True


def tpu_vector_memory(device_kind: str, groups: int, head_dim: int, block_size: int, item_bytes: int) -> dict[str, int]:
    """Bytes of a TPU core's vector memory that the attention kernels take: `forward`, `backward`, and the `limit`.

    The forward kernel is that of training, which writes the chosen branch and the difference of both.

    Args:
        device_kind: what a device of the chip calls itself, such as "TPU v6 lite".
        groups: query heads of a KV head.
        head_dim: size of a head.
        block_size: tokens in a block.
        item_bytes: bytes of one number.
    """
    from pallas_kernels.tpu.backward import backward_bytes
    from pallas_kernels.tpu.forward import forward_bytes
    from pallas_kernels.tpu.limits import VECTOR_MEMORY, tile_width

    device = jax.sharding.AbstractDevice(device_kind=device_kind, num_cores=1, platform="tpu")
    rows = groups * block_size
    with jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((), (), abstract_device=device)):
        keys = {
            kernel: block_size * tile_width(kernel, rows, head_dim, block_size) for kernel in ("forward", "backward")
        }
    return {
        "forward": forward_bytes(rows, head_dim, keys["forward"], item_bytes, [item_bytes, item_bytes]),
        "backward": backward_bytes(rows, head_dim, keys["backward"], item_bytes),
        "limit": VECTOR_MEMORY,
    }


@cache
def compiled(implementation: Callable, static: tuple[int, ...] = ()) -> Callable:
    """An implementation as a program of its own: outside `jit`, an op is then traced and compiled once for its shapes.

    Without this, loops and `custom_vjp` rules in an implementation are new functions at every call, which JAX compiles
    and keeps anew. Inside a compiled program it makes no difference.

    Args:
        implementation: a function of arrays and trees of arrays.
        static: positions of its arguments that are settings instead.
    """
    return jax.jit(implementation, static_argnums=static)


def choose[F: Callable](
    op: str, impl: str, implementations: Mapping[str, F], serves: Callable[[str], bool] = lambda name: True
) -> F:
    """Returns the implementation of `op` that `impl` names; "auto" takes the best one that serves the case.

    Raises:
        ValueError: `impl` is no known name.
        NotImplementedError: the name is known but `op` has no such implementation.
    """
    if impl == "auto":
        return next(implementations[name] for name in preferred() if name in implementations and serves(name))
    if impl in implementations:
        return implementations[impl]
    have = ", ".join(("auto", *implementations))
    if impl in PLANNED:
        raise NotImplementedError(f"{op} has no {impl!r} implementation yet. Use one of: {have}.")
    raise ValueError(f"{op}: unknown impl {impl!r}. Use one of: {have}.")
