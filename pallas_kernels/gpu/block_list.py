"""Lists of the blocks that a boolean mask keeps, so that a kernel visits them one after the other."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import triton
import triton.language as tl

from pallas_kernels.gpu.launch import launch


class BlockLists(NamedTuple):
    """Indices of the kept blocks in ascending order, and how many there are; what follows them is undefined."""

    blocks: jax.Array
    """int16 `[..., blocks]`."""
    count: jax.Array
    """int32 `[...]`."""


@triton.jit
def compact_kernel(keep_ptr, width, blocks_ptr, count_ptr, CHUNK: tl.constexpr):
    """One program compacts one row of the mask."""
    row = tl.program_id(0).to(tl.int64)
    count = 0
    for start in range(0, width, CHUNK):
        index = start + tl.arange(0, CHUNK)
        keep = tl.load(keep_ptr + row * width + index, mask=index < width, other=0).to(tl.int32)
        place = count + tl.cumsum(keep, 0) - keep
        tl.store(blocks_ptr + row * width + place, index.to(tl.int16), mask=keep != 0)
        count += tl.sum(keep, 0)  # pyrefly: ignore[unsupported-operation]
    tl.store(count_ptr + row, count)


def compact(keep: jax.Array) -> BlockLists:
    """Lists of the true entries along the last axis of a boolean array (at most 32767 long)."""
    *rows, width = keep.shape
    if width > jnp.iinfo(jnp.int16).max:
        raise ValueError(f"{width} key blocks; block lists hold indices up to {jnp.iinfo(jnp.int16).max}.")
    lists = launch(
        compact_kernel,
        keep.size // width,
        {"keep_ptr": keep.astype(jnp.int8), "width": width},
        {
            "blocks_ptr": jax.ShapeDtypeStruct(keep.shape, jnp.int16),
            "count_ptr": jax.ShapeDtypeStruct(tuple(rows), jnp.int32),
        },
        warps=4,
        stages=1,
        constants={"CHUNK": 256},
    )
    return BlockLists(lists["blocks_ptr"], lists["count_ptr"])
