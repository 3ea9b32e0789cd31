"""Keys and values on their way from HBM: two buffers, so that one tile is copied while another is computed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from pallas_kernels.tpu.sweep import Sweep


class Stream(NamedTuple):
    """Copies tiles between arrays `[P, J, block, H]` in HBM and buffers `[2, width, block, H]`."""

    arrays: Sequence[Any]
    buffers: Sequence[Any]
    done: Any
    """DMA semaphores `[2]`; that of a buffer counts the bytes of all arrays."""
    writes: bool = False
    """Whether tiles go from the buffers to HBM."""

    def start(self, sweep: Sweep, tile: jax.Array, buffer: jax.Array) -> None:
        self._each_copy(sweep, tile, buffer, lambda copy: copy.start())

    def wait(self, buffer: jax.Array, slots: int) -> None:
        """Waits for a tile that was read, by the bytes that its slots take: however many copies they were."""
        for target in self.buffers:
            filled = target.at[buffer, pl.ds(0, slots)]
            pltpu.make_async_copy(filled, filled, self.done.at[buffer]).wait()

    def wait_written(self, sweep: Sweep, tile: jax.Array, buffer: jax.Array) -> None:
        self._each_copy(sweep, tile, buffer, lambda copy: copy.wait())

    def _each_copy(self, sweep: Sweep, tile: jax.Array, buffer: jax.Array, act: Callable[[Any], None]) -> None:
        """A whole tile of neighbours is one copy for each array; otherwise each block is one.

        Reads fill all slots of the width that a tile is computed at, with copies of the last block; writes skip those.
        """
        first, last = sweep.block(tile, jnp.int32(0)), sweep.block(tile, jnp.int32(sweep.width - 1))
        whole = (sweep.left(tile) == sweep.width) & (last - first == sweep.width - 1)

        def copy(blocks: Any, slots: Any) -> None:
            for array, target in zip(self.arrays, self.buffers, strict=True):
                ends = array.at[sweep.head, blocks], target.at[buffer, slots]
                act(pltpu.make_async_copy(*(ends[::-1] if self.writes else ends), self.done.at[buffer]))

        def one(slot: jax.Array, _: None) -> None:
            copy(sweep.block(tile, slot), slot)

        pl.when(whole)(lambda: copy(pl.ds(first, sweep.width), slice(None)))
        count = sweep.left(tile) if self.writes else sweep.slots(tile)
        pl.when(jnp.logical_not(whole))(lambda: lax.fori_loop(0, count, one, None))


def following_step(head: jax.Array, step: jax.Array, steps: jax.Array | int) -> tuple[jax.Array, jax.Array]:
    """The (head, step) that comes next on a core; past the last one the head is the number of heads."""
    wraps = step == steps - 1
    return jnp.where(wraps, head + 1, head), jnp.where(wraps, 0, step + 1)


class Tiled(Protocol):
    """What is gone through in tiles."""

    @property
    def tiles(self) -> jax.Array: ...


class Copier[S](Protocol):
    """Starts the copies of a tile, like `Stream`."""

    def start(self, sweep: S, tile: jax.Array, buffer: jax.Array) -> None: ...


def run_tiles[S: Tiled](
    stream: Copier[S],
    sweep: S,
    following: S,
    is_first: jax.Array,
    is_last: jax.Array,
    buffer_ref: Any,
    visit: Callable[[jax.Array, jax.Array], None],
) -> None:
    """Calls `visit(tile, buffer)` for every tile of a sweep, and starts the copy of the first tile of the next sweep.

    `visit` waits for its tile, where it knows the number of slots: a wait of static size is much cheaper.

    Args:
        is_first, is_last: whether no grid step of this core comes before, or after.
        buffer_ref: scratch int32 `[1]` in scalar memory that lives on between grid steps.
    """

    def start_following(buffer: jax.Array) -> None:
        @pl.when((following.tiles > 0) & jnp.logical_not(is_last))
        def _():
            stream.start(following, jnp.int32(0), buffer)

    @pl.when(is_first)
    def _():
        buffer_ref[0] = 0

        @pl.when(sweep.tiles > 0)
        def _():
            stream.start(sweep, jnp.int32(0), jnp.int32(0))

    @pl.when(sweep.tiles == 0)
    def _():
        start_following(buffer_ref[0])

    def body(tile: jax.Array, buffer: jax.Array) -> jax.Array:
        @pl.when(tile + 1 < sweep.tiles)
        def _():
            stream.start(sweep, tile + 1, 1 - buffer)

        @pl.when(tile + 1 == sweep.tiles)
        def _():
            start_following(1 - buffer)

        visit(tile, buffer)
        return 1 - buffer

    buffer_ref[0] = lax.fori_loop(0, sweep.tiles, body, buffer_ref[0])
