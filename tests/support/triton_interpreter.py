"""Runs the Triton kernels on the CPU, through Triton's interpreter, inside ordinary jitted JAX functions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import jax
import ml_dtypes
import numpy as np
import triton.experimental.gluon  # noqa: F401  (the interpreter loads it, which must precede the patches)
import triton.language as tl
from triton import JITFunction
from triton.runtime import interpreter

from pallas_kernels.block_selection import triton as block_selection
from pallas_kernels.decode_attention import triton as decode_attention
from pallas_kernels.gpu import attention, backward, decode, forward, launch, plan, selection, tiles

LAUNCHING_MODULES = (attention, plan, block_selection, decode_attention)
KERNEL_MODULES = (tl, tl.standard, tiles, forward, backward, selection, decode, *LAUNCHING_MODULES)
TRITON_NAMES = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16", "int8": "i8", "int16": "i16", "int32": "i32"}
TRITON_NAMES |= {"uint32": "u32"}


class Tensor:
    """What the interpreter asks of a tensor that is on the host already; it is its own storage."""

    def __init__(self, array: np.ndarray):
        self.array = array
        self.dtype = TRITON_NAMES[array.dtype.name]

    def data_ptr(self) -> int:
        return self.array.ctypes.data

    def untyped_storage(self) -> Tensor:
        return self

    def cpu(self) -> Tensor:
        return self

    def copy_(self, _: Tensor) -> None:
        pass

    def new_empty(self, size: int, device: str) -> Tensor:
        return Tensor(np.empty(size, self.array.dtype))

    def set_(self, storage: Tensor, *_: Any) -> None:
        self.array = storage.array

    def storage_offset(self) -> int:
        return 0

    def size(self) -> tuple[int, ...]:
        return self.array.shape

    def stride(self) -> tuple[int, ...]:
        return self.array.strides


class Interpreted(interpreter.InterpretedFunction):
    """A kernel or a function that kernels call. The interpreter would patch Triton's language again at every call."""

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        return self.rewrite()(*arguments, **options)


def _widen(handle: interpreter.TensorHandle) -> interpreter.TensorHandle:
    if handle.dtype.scalar != tl.bfloat16:
        return handle
    return interpreter.TensorHandle(handle.data.view(ml_dtypes.bfloat16).astype(np.float32), tl.float32)


def _interpreted_launch(
    kernel: Interpreted,
    grid: int,
    arguments: Mapping[str, Any],
    outputs: Mapping[str, jax.ShapeDtypeStruct],
    *,
    warps: int,
    stages: int,
    constants: Mapping[str, Any],
) -> dict[str, jax.Array]:
    arrays = {name: x for name, x in arguments.items() if isinstance(x, jax.Array)}
    scalars = {name: x for name, x in arguments.items() if name not in arrays}
    absent = dict.fromkeys(set(kernel.arg_names) - set(arguments) - set(outputs) - set(constants))

    def run(*values: jax.Array) -> tuple[np.ndarray, ...]:
        inputs = {name: Tensor(np.array(x)) for name, x in zip(arrays, values, strict=True)}
        # A kernel must write every element that is read later, so what it does not write is poison.
        poison = {name: Tensor(np.full(x.shape, -77, x.dtype)) for name, x in outputs.items()}
        standard_library = interpreter._patch_lang(tl.standard.cdiv.fn)
        try:
            kernel[(grid,)](**inputs, **scalars, **absent, **poison, **constants)
        finally:
            standard_library.restore()
        return tuple(x.array for x in poison.values())

    return dict(zip(outputs, jax.pure_callback(run, tuple(outputs.values()), *arrays.values()), strict=True))


@contextmanager
def interpreted(patch: Any, capability: int = 90) -> Iterator[None]:
    """While it lasts, launched kernels run in the interpreter, with the tiles that a chip of `capability` would get."""
    with patch.context() as patch:
        for module in KERNEL_MODULES:
            for name, value in vars(module).copy().items():
                if isinstance(value, JITFunction):
                    patch.setattr(module, name, Interpreted(value.fn))
        for module in LAUNCHING_MODULES:
            patch.setattr(module, "launch", _interpreted_launch)
        patch.setattr(launch, "nvidia_capability", lambda: capability)
        # The interpreter multiplies the bit patterns of bfloat16 operands.
        product = interpreter.InterpreterBuilder.create_dot
        patch.setattr(
            interpreter.InterpreterBuilder,
            "create_dot",
            lambda self, a, b, *rest: product(self, _widen(a), _widen(b), *rest),
        )
        yield
