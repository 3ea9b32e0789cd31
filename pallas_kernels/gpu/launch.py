"""Starting Triton kernels from JAX, through jax-triton: the only file that imports it."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from functools import cache
from typing import Any

import jax
import jax.extend
import triton

from pallas_kernels.dispatch import nvidia_capability


def compute_capability() -> int:
    """`nvidia_capability`, which must exist.

    Raises:
        RuntimeError: the default device is no NVIDIA GPU.
    """
    capability = nvidia_capability()
    if capability is None:
        raise RuntimeError(
            f"The GPU kernels need an NVIDIA GPU; the default device is {jax.devices()[0].device_kind!r}. "
            "Use impl='auto', or impl='xla' for any platform."
        )
    return capability


@cache
def jax_triton() -> Any:
    """The module; with jax 0.12 its rule for dead code, which takes an argument less than jax passes, is replaced."""
    import jax_triton
    from jax_triton import triton_lib

    rules, primitive = triton_lib.pe.dce_rules, triton_lib.triton_kernel_call_p
    wanted = len(inspect.signature(rules[jax.extend.core.primitives.scan_p]).parameters)
    if len(inspect.signature(rules[primitive]).parameters) != wanted:

        def keep_everything(*arguments: Any) -> Any:
            return [True] * len(arguments[-1].invars), arguments[-1]

        rules[primitive] = keep_everything
    return jax_triton


def launch(
    kernel: triton.JITFunction,
    grid: int,
    arguments: Mapping[str, jax.Array | int | float | None],
    outputs: Mapping[str, jax.ShapeDtypeStruct],
    *,
    warps: int,
    stages: int,
    constants: Mapping[str, Any],
) -> dict[str, jax.Array]:
    """Runs `grid` programs of `kernel`; all names are those of its parameters. A parameter left out is None."""
    named = [p.name for p in kernel.params if not p.is_constexpr]
    absent = [name for name in named if name not in arguments and name not in outputs]
    written = jax_triton().triton_call(
        kernel=kernel,
        grid=grid,
        out_type=tuple(outputs[name] for name in named if name in outputs),
        compute_capability=compute_capability(),
        num_warps=warps,
        num_stages=stages,
        backend_options={"enable_fp_fusion": True},
        **dict.fromkeys(absent),
        **arguments,
        **constants,
    )
    return dict(zip((name for name in named if name in outputs), written, strict=True))
