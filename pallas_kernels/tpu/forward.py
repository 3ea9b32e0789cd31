"""Forward kernel: online softmax of every query block over its sweep, and optionally both outputs of it.

The grid is (2, heads, query blocks / 2). Its first axis is parallel: on chips whose two cores act as one device (v4,
v5p) each core takes every second query block of every head, so both have the same work with any routing. Within
a core the grid runs in order and a light head is simply followed by the next: no step waits for another, and the first
tile of a step is loaded during the last tile of the step before, across heads.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from pallas_kernels.schedule import AttentionSpec
from pallas_kernels.tpu.limits import LANES, compiler_params, padded_bytes, tile_width
from pallas_kernels.tpu.plan import LaunchSizes, Tables, is_sparse
from pallas_kernels.tpu.stream import Stream, following_step, run_tiles
from pallas_kernels.tpu.sweep import Sweep, make_sweep, tile_mask, widths

MASKED = -2e30
NOTHING = -1e30
"""Row maximum before any key: far above MASKED, so that the weight of a masked score is 0 even then."""

type Outputs = Literal["out", "one", "chosen", "both"]
OUTPUTS: dict[Outputs, tuple[str, ...]] = {
    "out": ("out",),
    "one": ("out", "lse"),
    "chosen": ("out", "lse", "out"),
    "both": ("out", "lse", "out", "lse"),
}
"""What a launch stores: the scheduled output without or with its log-sum-exp; the output of the branch that the head
is in, its log-sum-exp, and full - sparse; full output and log-sum-exp, then those of sparse."""


class Softmax(NamedTuple):
    """Refs of the running softmax; the statistics are the same in all lanes."""

    acc_RH: Any
    top_RL: Any
    sum_RL: Any

    def clear(self) -> None:
        self.acc_RH[...] = jnp.zeros_like(self.acc_RH)
        self.top_RL[...] = jnp.full_like(self.top_RL, NOTHING)
        self.sum_RL[...] = jnp.zeros_like(self.sum_RL)

    def output(self) -> jax.Array:
        return self.acc_RH[...] / over_lanes(jnp.maximum(self.sum_RL[...], 1e-30), self.acc_RH.shape[1])

    def lse(self, scale: float) -> jax.Array:
        """`[1, R]`; -inf for rows that saw nothing."""
        total = self.sum_RL[...]
        lse = jnp.where(total > 0, self.top_RL[...] * scale + jnp.log(jnp.maximum(total, 1e-30)), -jnp.inf)
        return lse.T[:1]


def over_lanes(x_RL: jax.Array, columns: int) -> jax.Array:
    """A value that is the same in all lanes, at another width."""
    return x_RL[:, :columns] if columns <= LANES else jnp.tile(x_RL, (1, -(-columns // LANES)))[:, :columns]


def dot(a: jax.Array, b: jax.Array, contract: tuple[int, int]) -> jax.Array:
    return lax.dot_general(a, b, (((contract[0],), (contract[1],)), ((), ())), preferred_element_type=jnp.float32)


def head_chunks(groups: int) -> list[range]:
    """Query heads in independent parts of equal size: the matmuls of one part run beside the softmax of another."""
    parts = next((n for n in range(2, groups + 1) if groups % n == 0), 1)
    size = groups // parts
    return [range(n * size, (n + 1) * size) for n in range(parts)]


def extend(
    state: Softmax,
    q_ref: Any,
    k_SH: jax.Array,
    v_SH: jax.Array,
    masks: list[jax.Array] | None,
    spec: AttentionSpec,
    groups: int,
) -> None:
    """Adds a tile of keys to the running softmax."""
    log2_scale = spec.scale * float(np.log2(np.e))
    parts = [slice(g.start * spec.block_size, g.stop * spec.block_size) for g in head_chunks(groups)]
    scores = [dot(q_ref[rows], k_SH, (1, 1)) for rows in parts]
    if masks is not None:
        scores = [jnp.where(mask, score, MASKED) for mask, score in zip(masks, scores, strict=True)]
    for rows, score in zip(parts, scores, strict=True):
        old = state.top_RL[rows]
        top = jnp.maximum(old, jnp.max(score, axis=1, keepdims=True))
        weights = jnp.exp2((score - over_lanes(top, score.shape[1])) * log2_scale)
        decay = jnp.exp2((old - top) * log2_scale)
        state.top_RL[rows] = top
        state.sum_RL[rows] = state.sum_RL[rows] * decay + jnp.sum(weights, axis=1, keepdims=True)
        out = dot(weights.astype(v_SH.dtype), v_SH, (1, 0))
        state.acc_RH[rows] = state.acc_RH[rows] * over_lanes(decay, out.shape[1]) + out


def forward_kernel(*refs: Any, outputs: Outputs, has_lists: bool, sizes: LaunchSizes, spec: AttentionSpec, width: int):
    scalars, rest = refs[: len(Tables._fields)], iter(refs[len(Tables._fields) :])
    tables = Tables(*scalars)
    q_ref, k_hbm, v_hbm = next(rest), next(rest), next(rest)
    lists = (next(rest), next(rest)) if has_lists else (None, None)
    out_refs = [next(rest) for _ in OUTPUTS[outputs]]
    near_ref: Any = next(rest) if outputs == "chosen" else None
    k_buffer, v_buffer, acc, top, total, buffer_ref, arrived = rest
    state = Softmax(acc, top, total)
    stream = Stream((k_hbm, v_hbm), (k_buffer, v_buffer), arrived)
    core, head, step = (pl.program_id(axis) for axis in range(3))

    def sweep_of(head: jax.Array, step: jax.Array, blocks: Any) -> Sweep:
        middle = outputs in ("chosen", "both")
        return make_sweep(
            tables, blocks, head, 2 * step + core, with_middle=middle, width=width, sizes=sizes, spec=spec
        )

    def compute(tile: jax.Array, buffer: jax.Array, slots: int, masked: bool) -> None:
        def keys(ref: Any) -> jax.Array:
            return ref[buffer, :slots].reshape(slots * spec.block_size, sizes.head_dim)

        stream.wait(buffer, slots)
        masks = None
        if masked:
            parts = head_chunks(sizes.groups)
            masks = [tile_mask(sweep, tile, slots, part, spec, sizes.groups, keys_axis=1) for part in parts]
        extend(state, q_ref, keys(k_buffer), keys(v_buffer), masks, spec, sizes.groups)

    def keep_near() -> None:
        """Keeps what a sparse head gives; the middle then turns it into what a full one gives."""
        out, lse = (out_refs[2], out_refs[3]) if outputs == "both" else (near_ref, out_refs[1])
        out[...] = state.output().astype(out.dtype)
        lse[...] = state.lse(spec.scale)

    def visit(tile: jax.Array, buffer: jax.Array) -> None:
        if outputs in ("chosen", "both"):
            pl.when(tile == sweep.near_tiles)(keep_near)
        unmasked, slots = sweep.unmasked(tile, spec), sweep.slots(tile)
        pl.when(unmasked)(partial(compute, tile, buffer, width, False))
        for size in widths(width):
            pl.when(jnp.logical_not(unmasked) & (slots == size))(partial(compute, tile, buffer, size, True))

    sweep = sweep_of(head, step, lists[0])
    next_head, next_step = following_step(head, step, pl.num_programs(2))
    following = sweep_of(jnp.minimum(next_head, sizes.heads - 1), next_step, lists[1])
    state.clear()
    run_tiles(stream, sweep, following, (head == 0) & (step == 0), next_head == sizes.heads, buffer_ref, visit)
    if outputs in ("chosen", "both"):
        pl.when(sweep.near_tiles == sweep.tiles)(keep_near)

    def store(out: Any, lse: Any = None) -> None:
        out[...] = state.output().astype(out.dtype)
        if lse is not None:
            lse[...] = state.lse(spec.scale)

    if outputs != "chosen":
        store(*out_refs[:2])
        return
    sparse = is_sparse(tables, head, 2 * step + core, sizes)
    out_refs[2][...] = (state.output() - near_ref[...]).astype(q_ref.dtype)
    pl.when(jnp.logical_not(sparse))(partial(store, *out_refs[:2]))

    @pl.when(sparse)
    def _():
        out_refs[0][...] = near_ref[...].astype(q_ref.dtype)


def forward_bytes(rows: int, head_dim: int, keys: int, item: int, out_items: Sequence[int]) -> int:
    """Vector memory of the kernel, bytes: `rows` queries and tiles of `keys` keys with numbers of `item` bytes, and
    outputs of the given ones."""
    return (
        2 * padded_bytes(rows, head_dim, item)
        + 2 * sum(padded_bytes(rows, head_dim, out_item) for out_item in out_items)
        + 4 * padded_bytes(keys, head_dim, item)
        + 2 * padded_bytes(rows, head_dim, 4)
        + 2 * padded_bytes(rows, LANES, 4)
        + padded_bytes(rows, keys, 8 + item)
    )


def attention_forward(
    q_PQRH: jax.Array,
    k_PJSH: jax.Array,
    v_PJSH: jax.Array,
    tables: Tables,
    lists: jax.Array | None,
    outputs: Outputs,
    sizes: LaunchSizes,
    spec: AttentionSpec,
    *,
    out_dtype: jnp.dtype | None = None,
) -> tuple[jax.Array, ...]:
    """Runs the kernel on whole blocks (S = block).

    Args:
        lists: see `list_blocks`; only with `outputs` "out" or "one".
        out_dtype: type of the outputs; that of q by default.

    Returns:
        The arrays that `OUTPUTS` names: outputs `[P, Q, R, H]`, log-sum-exps `[P, Q, 1, R]` float32.
    """
    P, Q, R, H = q_PQRH.shape
    width, block = tile_width("forward", R, H, spec.block_size), spec.block_size
    item = q_PQRH.dtype.itemsize
    out_shapes = {
        "out": jax.ShapeDtypeStruct((P, Q, R, H), out_dtype or q_PQRH.dtype),
        "lse": jax.ShapeDtypeStruct((P, Q, 1, R), jnp.float32),
    }
    kinds = OUTPUTS[outputs]

    def here(core: jax.Array, head: jax.Array, step: jax.Array, *_: Any) -> tuple:
        return head, 2 * step + core, 0, 0

    def after(core: jax.Array, head: jax.Array, step: jax.Array, *_: Any) -> tuple:
        head, step = following_step(head, step, Q // 2)
        return jnp.minimum(head, P - 1), 2 * step + core, 0, 0

    blocks = {kind: pl.BlockSpec((None, None, *shape.shape[2:]), here) for kind, shape in out_shapes.items()}
    in_specs = [blocks["out"], *[pl.BlockSpec(memory_space=pltpu.HBM)] * 2]
    operands = [q_PQRH, k_PJSH, v_PJSH]
    if lists is not None:
        shape = (None, None, *lists.shape[2:])
        in_specs += [pl.BlockSpec(shape, index, memory_space=pltpu.SMEM) for index in (here, after)]
        operands += [lists, lists]
    scratch = [pltpu.VMEM((R, H), jnp.float32)] if outputs == "chosen" else []
    scratch += [
        pltpu.VMEM((2, width, block, H), k_PJSH.dtype),
        pltpu.VMEM((2, width, block, H), v_PJSH.dtype),
        pltpu.VMEM((R, H), jnp.float32),
        pltpu.VMEM((R, LANES), jnp.float32),
        pltpu.VMEM((R, LANES), jnp.float32),
        pltpu.SMEM((1,), jnp.int32),
        pltpu.SemaphoreType.DMA((2,)),
    ]
    out_items = [out_shapes["out"].dtype.itemsize] * kinds.count("out")
    need = forward_bytes(R, H, width * block, item, out_items)
    pairs = P * sum(range(sizes.geometry.first_query_block + 1, sizes.geometry.key_blocks + 1)) * R * block
    return pl.pallas_call(
        partial(forward_kernel, outputs=outputs, has_lists=lists is not None, sizes=sizes, spec=spec, width=width),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=len(tables),
            grid=(2, P, Q // 2),
            in_specs=in_specs,
            out_specs=[blocks[kind] for kind in kinds],
            scratch_shapes=scratch,
        ),
        out_shape=[out_shapes[kind] for kind in kinds],
        compiler_params=compiler_params(need),
        cost_estimate=pl.CostEstimate(
            flops=4 * pairs * H,
            transcendentals=pairs,
            bytes_accessed=2 * pairs // R * H * item + 2 * q_PQRH.size * item,
        ),
        name=f"attention_forward_{outputs}",
    )(*tables, *operands)
