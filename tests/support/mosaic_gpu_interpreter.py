"""Lets Mosaic GPU kernels with accumulators in `run_state`, which JAX's interpreter does not know, run on the CPU."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import jax
import numpy as np
from jax._src import callback
from jax._src.pallas.mosaic_gpu.interpret import gpu_callbacks, jaxpr_interpret, shared_memory
from jax._src.state.types import AbstractRef
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from pallas_kernels.gpu import launch
from pallas_kernels.hybrid_attention import api


def _zero_based_run_state(body: Callable) -> Callable:
    """`pl.run_state` of one accumulator: it starts at zero and what it held is added afterwards."""

    def run(initial: Any) -> jax.Array:
        value = initial._init

        def scoped(ref):
            body(ref)
            return ref[...]

        return value + pl.run_scoped(scoped, plgpu.ACC(value.shape, value.dtype))

    return run


@gpu_callbacks.fail_on_exception
def _multiply_registers(*, token, place, thread, acc_key, acc_transforms, a, b_key, b_transforms, source_info):
    memory = gpu_callbacks._get_shared_memory()
    info = shared_memory.GPULoggingInfo(place, thread, source_info)
    keys = [gpu_callbacks.HostAllocationKey.from_array(key) for key in (acc_key, b_key)]
    ranges = [
        memory.access(key, jax.tree.map(int, gpu_callbacks._remove_noop_transforms(transforms)))
        for key, transforms in zip(keys, (acc_transforms, b_transforms), strict=True)
    ]
    acc, b = (
        memory.get_buffer_content(key, at, thread, logging_info=info)[0] for key, at in zip(keys, ranges, strict=True)
    )
    product = np.matmul(np.asarray(a, np.float32), np.asarray(b, np.float32))
    memory.store_buffer_content(keys[0], ranges[0], acc + product.astype(acc.dtype), thread, logging_info=info)
    return token


def _wgmma_rule(original: Callable) -> Callable:
    """The interpreter's rule for wgmma, and one for a left operand that lies in registers."""

    def rule(self, eqn, token, get_invals):
        if isinstance(eqn.invars[1].aval, AbstractRef):
            return original(self, eqn, token, get_invals)
        acc, a, b, *leaves = get_invals()
        trees = [eqn.params[f"{name}_transforms_tree"] or jax.tree.structure([]) for name in ("acc", "a", "b")]
        acc_transforms, _, b_transforms = jax.tree.unflatten(jax.tree_util.treedef_tuple(trees), leaves)
        acc, acc_transforms = jaxpr_interpret.resolve_ref(eqn.invars[0].aval, acc, acc_transforms)
        b, b_transforms = jaxpr_interpret.resolve_ref(eqn.invars[2].aval, b, b_transforms)
        call = partial(_multiply_registers, source_info=eqn.source_info)
        token = callback.io_callback(
            call, gpu_callbacks.TOKEN_SHAPE_DTYPE, token=token, place=self.mesh_location, thread=self.thread,
            acc_key=acc, acc_transforms=acc_transforms, a=a, b_key=b, b_transforms=b_transforms,
        )  # fmt: skip
        return token, []

    return rule


@contextmanager
def interpreted(patch: Any) -> Iterator[None]:
    """While it lasts, Mosaic GPU kernels run in interpret mode, as on a Hopper GPU."""
    interpreter = jaxpr_interpret.JaxprInterpreter
    with patch.context() as patch:
        patch.setattr(interpreter, "_interpret_wgmma_ref_p", _wgmma_rule(interpreter._interpret_wgmma_ref_p))
        patch.setattr(pl, "run_state", _zero_based_run_state)
        patch.setattr(launch, "nvidia_capability", lambda: 90)
        # its ordered callbacks cannot be part of a program that is divided over devices
        patch.setattr(api, "compiled", lambda implementation: implementation)
        try:
            with plgpu.force_gpu_interpret_mode(plgpu.InterpretGPUParams()):
                yield
        finally:
            gpu_callbacks.reset_gpu_interpret_mode_state()
