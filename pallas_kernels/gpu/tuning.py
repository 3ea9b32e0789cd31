"""Tile sizes of the Triton kernels: a small table for each chip, a rule for what the tables leave out.

A tile never crosses a block of the schedule. The shared memory that a tile needs is known before anything is compiled.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from functools import cache
from typing import Any

from pallas_kernels.tile_tables import Table, read_table, warn_of_unknown_chip

SHARED_MEMORY = {80: 166912, 86: 101376, 87: 166912, 89: 101376, 90: 232448, 100: 232448, 103: 232448}
"""Bytes that one program may use, by compute capability (CUDA programming guide, technical specifications)."""
SMALLEST_SHARED_MEMORY = 101376
SMALLEST_TILE = 16
"""Rows that a tensor core product needs."""


def padded(size: int) -> int:
    """The power of two that holds `size` rows or channels of a tile."""
    return max(SMALLEST_TILE, 1 << (size - 1).bit_length())


@dataclass(frozen=True)
class Tile:
    """How a kernel is cut up: rows of a query tile and of a key tile, warps of a program, depth of its pipeline."""

    queries: int
    keys: int
    warps: int
    stages: int


def shared_bytes(kernel: str, tile: Tile, capability: int, head_pad: int, itemsize: int) -> int:
    """Shared memory of one program: the tiles that stay, and one copy of the tiles that stream for each stage."""
    query_tile, key_tile = (rows * head_pad * itemsize for rows in (tile.queries, tile.keys))
    stays, streams = {
        "forward": (query_tile, 2 * key_tile),
        "dq": (2 * query_tile, 2 * key_tile),
        "dkv": (2 * key_tile, 2 * query_tile + 8 * tile.queries),
    }[kernel]
    copies = max(1, tile.stages if capability >= 90 else tile.stages - 1)
    # Weights pass through shared memory before Hopper when the warps do not fill the rows. Blackwell keeps its barriers
    # there, and its backward kernels another copy of what they transpose.
    rows = tile.keys if kernel == "dkv" else tile.queries
    weights = tile.queries * tile.keys * itemsize
    passed = 0
    if capability < 90 and rows < 128:
        passed = weights
    elif capability >= 100:
        passed = 1088 + {"forward": 0, "dq": max(weights, key_tile), "dkv": max(weights, 2 * query_tile)}[kernel]
    return stays + copies * streams + passed


@cache
def table(capability: int) -> Table:
    """Tiles for 16-bit operands by kernel and padded head dim; empty for a chip without a sound file."""
    return read_table("pallas_kernels.gpu", f"sm_{capability}", _is_tile)


def _is_tile(entry: Any) -> bool:
    sizes = {field.name for field in fields(Tile)}
    return isinstance(entry, dict) and set(entry) == sizes and all(type(n) is int and n > 0 for n in entry.values())


def rule_of_thumb(kernel: str, capability: int, head_pad: int, itemsize: int, limit: int) -> Tile:
    """The largest usual tile that fits, at most 64 x 64 in a backward kernel with wide heads."""
    wide = head_pad > 64
    queries = 64 if itemsize > 2 or head_pad > 128 or (kernel != "forward" and wide) else 128
    tile = Tile(queries, 64, 8 if wide else 4, 3)
    smaller = [replace(tile, stages=2), replace(tile, stages=2, keys=32), Tile(32, 32, 4, 2), Tile(16, 16, 4, 1)]
    for choice in (tile, *smaller):
        if shared_bytes(kernel, choice, capability, head_pad, itemsize) <= limit:
            return choice
    return smaller[-1]


def _check_capability(capability: int) -> None:
    if capability < 80:
        raise ValueError(
            f"The GPU kernels need compute capability 8.0; this GPU has {capability / 10}. Use impl='xla'."
        )
    if capability not in SHARED_MEMORY:
        warn_of_unknown_chip(f"Compute capability {capability / 10}")


def choose_tile(kernel: str, capability: int, head_pad: int, itemsize: int, block: int) -> Tile:
    """Tile of `kernel` ("forward", "dq" or "dkv") for operands of `itemsize` bytes and blocks of `block` tokens.

    Raises:
        ValueError: blocks that no tile divides, or a chip older than sm_80, or with too little shared memory.
    """
    _check_capability(capability)
    divisor = block & -block
    if divisor < SMALLEST_TILE:
        raise ValueError(
            f"block_size={block} on a GPU; wanted a multiple of {SMALLEST_TILE}, the rows of the smallest tile."
        )
    limit = SHARED_MEMORY.get(capability, SMALLEST_SHARED_MEMORY)
    entry = table(capability).get(kernel, {}).get(str(head_pad)) if itemsize == 2 else None
    tile = Tile(**entry) if entry else rule_of_thumb(kernel, capability, head_pad, itemsize, limit)
    tile = replace(tile, queries=min(tile.queries, divisor), keys=min(tile.keys, divisor))
    need = shared_bytes(kernel, tile, capability, head_pad, itemsize)
    if need > limit:
        raise ValueError(
            f"The {kernel} kernel needs {need} bytes of shared memory for head_dim {head_pad} and {tile}; "
            f"sm_{capability} gives a program {limit}. Use a smaller tile in its table, or impl='xla'."
        )
    return tile


def choose_score_tile(capability: int, head_pad: int, itemsize: int, groups: int) -> Tile:
    """Tile of the scoring kernel of block selection: groups of queries by groups of keys, `groups` to a block.

    Raises:
        ValueError: a number of groups that no tile divides, or a chip older than sm_80.
    """
    _check_capability(capability)
    if groups & (groups - 1) or groups > 128:
        raise ValueError(
            f"A block has {groups} groups of tokens; on a GPU wanted a power of two up to 128. Change stride, or use "
            "impl='xla'."
        )
    limit = SHARED_MEMORY.get(capability, SMALLEST_SHARED_MEMORY)
    sizes = (Tile(128, 128, 8, 3), Tile(128, 128, 8, 2), Tile(64, 128, 8, 2), Tile(32, 128, 4, 1))
    for tile in sizes:
        copies = max(1, tile.stages if capability >= 90 else tile.stages - 1)
        if copies * (tile.queries + tile.keys) * head_pad * itemsize <= limit - 2048:
            return tile
    return sizes[-1]
