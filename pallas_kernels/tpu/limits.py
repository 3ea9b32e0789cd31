"""Tile sizes and vector memory: computed before the launch, refused with numbers."""

from __future__ import annotations

from jax.experimental.pallas import tpu as pltpu

from pallas_kernels.tpu.plan import Layout

LANES = 128
WIDEST_TILE = 8
SCORE_BYTES = 4 * 2**20
"""Float32 scores of one tile, at most."""
VECTOR_MEMORY = 60 * 2**20
"""Bytes a kernel may take; the smallest chips (v5p, 7x) have 64 MiB a core."""


def tile_width(layout: Layout) -> int:
    """Key blocks of a whole tile, a power of two: 8, or what keeps the scores of many query heads in bounds."""
    width = WIDEST_TILE
    while width > 1 and 4 * layout.rows * width * layout.geometry.block > SCORE_BYTES:
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
