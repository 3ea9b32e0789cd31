"""Compiles the Triton kernels for a GPU that is not there, and reads what the machine code needs."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from pallas_kernels.block_selection import triton as block_selection
from pallas_kernels.decode_attention import triton as decode_attention
from pallas_kernels.gpu import attention, plan
from pallas_kernels.gpu import launch as launching

TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
TYPES = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16", "int8": "i8", "int16": "i16", "int32": "i32"}
TYPES |= {"uint32": "u32"}


@dataclass(frozen=True)
class Report:
    """One compiled kernel: registers of a thread, bytes of its stack, bytes of shared memory.

    Stack means registers that were spilled. Stored once before a loop and fetched once after it they cost nothing to
    speak of; `spills` counts the loads and stores inside innermost loops.
    """

    kernel: str
    constants: Mapping[str, Any]
    registers: int
    stack: int
    spills: int
    shared: int
    instructions: frozenset[str]

    def __str__(self) -> str:
        sizes = ", ".join(f"{name.lower()} {value}" for name, value in self.constants.items())
        stack = f"stack {self.stack} ({self.spills} spills in loops)"
        return f"{self.kernel}: {self.registers} registers, {stack}, shared {self.shared} ({sizes})"


def spills_in_loops(assembly: str) -> int:
    """Accesses to the stack inside innermost loops, which are what a branch backwards encloses."""
    lines = assembly.splitlines()
    labels = {found[1]: at for at, line in enumerate(lines) if (found := re.match(r"\s*(\.L_x_\d+):", line))}
    branches = [(at, re.search(r"\bBRA\b.*`\((\.L_x_\d+)\)", line)) for at, line in enumerate(lines)]
    loops = [(labels[found[1]], at) for at, found in branches if found and labels[found[1]] < at]
    innermost = [a for a in loops if not any(b != a and a[0] <= b[0] and b[1] <= a[1] for b in loops)]
    return sum(bool(re.search(r"\b(LDL|STL)\b", line)) for start, end in innermost for line in lines[start:end])


def resources_of(cubin: bytes, folder: Path) -> tuple[int, int, int, frozenset[str]]:
    """(registers, stack bytes, spills in loops, mnemonics) of a cubin."""
    file = folder / "kernel.cubin"
    file.write_bytes(cubin)

    def ask(tool: str, option: str) -> str:
        return subprocess.run([TOOLS / tool, option, file], capture_output=True, text=True, check=True).stdout

    usage = re.search(r"REG:(\d+) STACK:(\d+)", ask("cuobjdump", "-res-usage"))
    assert usage is not None
    assembly = ask("nvdisasm", "-c")
    mnemonics = frozenset(re.findall(r"\b[A-Z][A-Z0-9]{2,}\b", assembly))
    return int(usage[1]), int(usage[2]), spills_in_loops(assembly), mnemonics


@contextmanager
def compiled(patch: Any, capability: int, folder: Path) -> Iterator[list[Report]]:
    """While it lasts, a launch compiles its kernel for `capability` and appends a report; nothing runs."""
    reports: list[Report] = []

    def launch(kernel, grid, arguments, outputs, *, warps, stages, constants):
        signature: dict[str, str] = {}
        constexprs: dict[str, Any] = dict(constants)
        attributes = {}
        for index, parameter in enumerate(kernel.params):
            name = parameter.name
            value = arguments.get(name, outputs.get(name))
            if parameter.is_constexpr or value is None:
                signature[name] = "constexpr"
                constexprs.setdefault(name, None)
            elif isinstance(value, int):
                signature[name] = "i32"
            elif isinstance(value, float):
                signature[name] = "fp32"
            else:
                signature[name] = "*" + TYPES[value.dtype.name]
            if signature[name].startswith("*") or isinstance(value, int) and value % 16 == 0:
                attributes[index,] = [["tt.divisibility", 16]]
        built = triton.compile(
            ASTSource(fn=kernel, signature=signature, constexprs=constexprs, attrs=attributes),
            target=GPUTarget("cuda", capability, 32),
            options={"num_warps": warps, "num_stages": stages, "enable_fp_fusion": True},
        )
        registers, stack, spills, mnemonics = resources_of(built.asm["cubin"], folder)
        reports.append(Report(kernel.__name__, constants, registers, stack, spills, built.metadata.shared, mnemonics))
        return {name: jnp.zeros(x.shape, x.dtype) for name, x in outputs.items()}

    with patch.context() as patch:
        for module in (attention, plan, block_selection, decode_attention):
            patch.setattr(module, "launch", launch)
        patch.setattr(launching, "nvidia_capability", lambda: capability)
        yield reports


def compile_kernels(
    patch: Any, capability: int, folder: Path, function: Callable, *arguments: jax.ShapeDtypeStruct
) -> list[Report]:
    """Reports of all kernels that `function(*arguments)` would start on a chip of that compute capability."""
    with compiled(patch, capability, folder) as reports:
        jax.eval_shape(function, *arguments)
    return reports
