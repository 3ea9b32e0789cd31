"""Tile sizes and vector memory: a small table for each chip, a rule for the rest; refused with numbers if too large."""

from __future__ import annotations

from functools import cache
from typing import Any, Literal

import jax
from jax.experimental.pallas import tpu as pltpu

from pallas_kernels.tile_tables import Table, read_table, warn_of_unknown_chip

LANES = 128
CHIPS = {"TPU v5 lite": "v5e", "TPU v5": "v5p", "TPU v6 lite": "v6e", "TPU7x": "tpu7x"}
"""Short names by what devices call themselves."""
WIDEST_TILE = {"forward": 8, "backward": 4}
"""Key blocks of a whole tile, by kernel, for a chip without a table."""
SCORE_BYTES = 4 * 2**20
"""Float32 scores of one tile, at most."""
VECTOR_MEMORY = 60 * 2**20
"""Bytes a kernel may take; the smallest chips (v5p, 7x) have 64 MiB a core."""


def chip() -> str | None:
    """Short name of the TPU that programs are made for, a compile-only one too; None for anything else."""
    device = jax.sharding.get_abstract_mesh().abstract_device or jax.devices()[0]
    name = CHIPS.get(device.device_kind)
    if name is None and device.platform == "tpu":
        warn_of_unknown_chip(device.device_kind)
    return name


@cache
def table(name: str | None) -> Table:
    """Key blocks of a whole tile by kernel and head dim; empty for a chip without a sound file."""
    return read_table("pallas_kernels.tpu", str(name), _is_width)


def _is_width(entry: Any) -> bool:
    return type(entry) is int and entry > 0 and entry.bit_count() == 1


def tile_width(kernel: Literal["forward", "backward"], rows: int, head_dim: int, block_size: int) -> int:
    """Key blocks of a whole tile, a power of two: that of the table, or what keeps the scores in bounds.

    Args:
        kernel: which one.
        rows: rows of a query block, those of all query heads of a KV head.
        head_dim: size of a head.
        block_size: tokens in a key block.
    """
    width = table(chip()).get(kernel, {}).get(str(head_dim), WIDEST_TILE[kernel])
    bound = SCORE_BYTES * WIDEST_TILE[kernel] // WIDEST_TILE["forward"]
    while width > 1 and 4 * rows * width * block_size > bound:
        width //= 2
    return width


def compiler_params(need: int) -> pltpu.CompilerParams:
    """Parameters of a kernel with a grid of (cores, heads, steps) that takes `need` bytes of vector memory.

    Raises:
        ValueError: no chip has that much.
    """
    if need > VECTOR_MEMORY:
        raise ValueError(
            f"The kernel needs {need / 2**20:.1f} MiB of the TPU's vector memory; wanted at most "
            f"{VECTOR_MEMORY // 2**20}. Use a smaller block_size, or shard the query heads."
        )
    return pltpu.CompilerParams(
        dimension_semantics=("parallel", "arbitrary", "arbitrary"), vmem_limit_bytes=VECTOR_MEMORY
    )


def padded_bytes(rows: int, columns: int, item: int) -> int:
    """Bytes of an array in vector memory, whose last axis fills whole lanes."""
    return rows * -(-columns // LANES) * LANES * item
