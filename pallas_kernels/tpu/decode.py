"""Decode kernel: a few queries of every head against its packed groups and exact tokens, in one online softmax.

The pages of a head are copied by its block table, while those before them are computed; neighbours in the pool are one
copy. Packed words become bytes by a change of type in the register, and bytes codes by a shift and a mask, so that no
token crosses lanes: tokens of a group come out in the order of `byte_order`, and what goes with them is stored so.
Codes are exact in bfloat16. What multiplies them is split into bfloat16 parts, which are rows that the matrix unit
would otherwise leave empty, so the products are as exact as the operands.

The grid is (2, half of the heads): on chips whose two cores act as one device each takes half, dealt out by work.
"""

from __future__ import annotations

from functools import partial, reduce
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from pallas_kernels.kv_quant.xla import WORD_BITS
from pallas_kernels.schedule import AttentionSpec, Schedule
from pallas_kernels.tpu import limits
from pallas_kernels.tpu.backward import deal_heads
from pallas_kernels.tpu.forward import MASKED, Softmax, dot, over_lanes
from pallas_kernels.tpu.stream import run_tiles

BYTES = 4
"""Bytes of a word."""
K_SCALE, K_ZERO, TOKENS, VALUES = range(4)
"""Rows of the metadata of a group; from VALUES on the scales, then the zeros, of each channel group."""


class DecodeOperands(NamedTuple):
    """P heads (row after row), R rows of queries, J groups, E exact slots, M rows of metadata of L lanes."""

    q_PRH: jax.Array
    limits_PR3: jax.Array
    """int32: `token_limits` of each row."""
    exact_k_PEH: jax.Array
    exact_v_PEH: jax.Array
    exact_pos_P1E: jax.Array
    table_P2J: jax.Array
    """int32: page of each group, and how many groups from it on lie on consecutive pages."""
    k_codes: jax.Array
    v_codes: jax.Array
    marks_PJML: jax.Array
    """float32: the metadata of each group. A row of tokens holds the norms of the keys, or ones; -1 for a hole."""


WIDER = 4
"""A whole tile is so many times as wide as those that the rest of a head is computed in: waiting for the products of a
tile before its softmax costs as much as eight groups, at any width."""


class GroupSweep(NamedTuple):
    """The groups that a head visits, in tiles of up to `width`; a tile that is not whole is computed by parts."""

    head: jax.Array
    plan: Schedule
    steps: jax.Array
    table: Any
    """Ref `[2, J]` in scalar memory."""
    width: int

    @property
    def part(self) -> int:
        return self.width // WIDER

    @property
    def tiles(self) -> jax.Array:
        return (self.steps + self.width - 1) >> (self.width.bit_length() - 1)

    def left(self, tile: jax.Array) -> jax.Array:
        return jnp.minimum(self.steps - tile * self.width, self.width)

    def parts(self, tile: jax.Array) -> jax.Array:
        return (self.left(tile) + self.part - 1) >> (self.part.bit_length() - 1)

    def group(self, tile: jax.Array, slot: jax.Array | int) -> jax.Array:
        """Group in a slot; slots beyond the last group repeat it."""
        return self.plan.block(tile * self.width + jnp.minimum(slot, self.left(tile) - 1))


class PageStream(NamedTuple):
    """Copies codes by page and metadata by group into buffers `[2, width, ...]`."""

    arrays: tuple[Any, Any]
    marks: Any
    buffers: tuple[Any, Any]
    marks_buffer: Any
    done: Any
    """DMA semaphores `[2]`."""

    def start(self, sweep: GroupSweep, tile: jax.Array, buffer: jax.Array) -> None:
        self._each_copy(sweep, tile, buffer, lambda copy: copy.start())

    def wait(self, sweep: GroupSweep, tile: jax.Array, buffer: jax.Array) -> None:
        self._each_copy(sweep, tile, buffer, lambda copy: copy.wait())

    def _each_copy(self, sweep: GroupSweep, tile: jax.Array, buffer: jax.Array, act: Any) -> None:
        first, last = sweep.group(tile, 0), sweep.group(tile, sweep.width - 1)
        whole = (sweep.left(tile) == sweep.width) & (last - first == sweep.width - 1)
        neighbours = whole & (sweep.table[1, first] >= sweep.width)

        def copy(source: Any, target: Any) -> None:
            act(pltpu.make_async_copy(source, target, self.done.at[buffer]))

        def codes(pages: Any, slots: Any) -> None:
            for array, target in zip(self.arrays, self.buffers, strict=True):
                copy(array.at[pages], target.at[buffer, slots])

        def marks(groups: Any, slots: Any) -> None:
            copy(self.marks.at[sweep.head, groups], self.marks_buffer.at[buffer, slots])

        def one(slot: jax.Array, _: None) -> None:
            group = sweep.group(tile, slot)
            pl.when(jnp.logical_not(whole))(lambda: marks(group, slot))
            codes(sweep.table[0, group], slot)

        pl.when(whole)(lambda: marks(pl.ds(first, sweep.width), slice(None)))
        pl.when(neighbours)(lambda: codes(pl.ds(sweep.table[0, first], sweep.width), slice(None)))
        pl.when(jnp.logical_not(neighbours))(lambda: lax.fori_loop(0, sweep.parts(tile) * sweep.part, one, None))


def byte_order[A: (jax.Array, np.ndarray)](n: A, words: int, bits: int) -> A:
    """Token of a group whose codes come out at index `n`, for tiles of `words` rows."""
    plane, byte_row = n // (BYTES * words), n % (BYTES * words)
    return words * (byte_row % BYTES * (WORD_BITS // BYTES // bits) + plane) + byte_row // BYTES


def codes_of(words: jax.Array, bits: int) -> jax.Array:
    """Codes `[tokens, H]` of packed words `[rows, H]` in bfloat16, tokens in `byte_order`."""
    packed = pltpu.bitcast(words, jnp.uint8)
    planes = [(packed >> at) & (2**bits - 1) for at in range(0, WORD_BITS // BYTES, bits)]
    return jnp.concatenate([plane.astype(jnp.bfloat16) for plane in planes], axis=0)


def exact_dot(a: jax.Array, codes: jax.Array, contract: tuple[int, int], pieces: int) -> jax.Array:
    """Product of float32 `[R, x]` with bfloat16 codes; `a` is taken as the sum of `pieces` bfloat16 numbers."""
    split, rest = [], a
    for _ in range(pieces):
        split.append(rest.astype(jnp.bfloat16).astype(jnp.float32))
        rest = rest - split[-1]
    products = dot(jnp.concatenate(split, axis=0).astype(jnp.bfloat16), codes, contract)
    R = a.shape[0]
    return reduce(jnp.add, [products[n * R : (n + 1) * R] for n in range(pieces)])


def extend(state: Softmax, scores: list[jax.Array], visible: list[jax.Array]) -> list[jax.Array]:
    """Counts base-2 scores in and returns their weights; the caller adds weights times values to `acc`."""
    scores = [jnp.where(mask, score, MASKED) for mask, score in zip(visible, scores, strict=True)]
    old = state.top_RL[...]
    # Reductions over lanes are slow: one for all scores.
    top = jnp.maximum(old, jnp.max(reduce(jnp.maximum, scores), axis=1, keepdims=True))
    weights = [jnp.exp2(score - over_lanes(top, score.shape[1])) for score in scores]
    decay = jnp.exp2(old - top)
    state.top_RL[...] = top
    state.sum_RL[...] = state.sum_RL[...] * decay + jnp.sum(sum(weights), axis=1, keepdims=True)
    state.acc_RH[...] = state.acc_RH[...] * over_lanes(decay, state.acc_RH.shape[1])
    return weights


def decode_kernel(*refs: Any, spec: AttentionSpec, group: int, bits: int, norm: bool, pieces: int, width: int):
    order, runs, *rest = refs
    q_ref, limits_ref, exact_k_ref, exact_v_ref, exact_pos_ref, table, next_table, *rest = rest
    k_codes, v_codes, marks, out_ref, k_buffer, v_buffer, marks_buffer, acc, top, total, buffer_ref, arrived = rest
    state = Softmax(acc, top, total)
    stream = PageStream((k_codes, v_codes), marks, (k_buffer, v_buffer), marks_buffer, arrived)
    core, turn, turns = pl.program_id(0), pl.program_id(1), pl.num_programs(1)
    heads, H = marks.shape[0], q_ref.shape[1]
    words = k_codes.shape[1]
    channel_groups = max(1, H // group)
    channels = H // channel_groups
    sink_end = spec.sink_blocks * spec.block_size
    log2_scale = spec.scale * float(np.log2(np.e))

    def sweep_of(turn: jax.Array, table: Any) -> GroupSweep:
        head = order[core * turns + turn]
        at = 4 * jnp.minimum(head, heads - 1)
        plan = Schedule(runs[at], runs[at + 1], runs[at + 2], jnp.int32(0))
        return GroupSweep(head, plan, jnp.where(head < heads, runs[at + 3], 0), table, width)

    def seen(pos: jax.Array) -> jax.Array:
        least, near, last = (limits_ref[:, n : n + 1] for n in range(3))
        return (pos >= least) & (pos <= last) & ((pos < sink_end) | (pos >= near))

    def compute(tile: jax.Array, buffer: jax.Array, at: jax.Array, slots: int) -> None:
        q_RH = q_ref[...].astype(jnp.float32)
        token = byte_order(lax.broadcasted_iota(jnp.int32, (1, group), 1), words, bits)
        scores, visible = [], []
        for slot in (at + n for n in range(slots)):
            k_scale, k_zero = (marks_buffer[buffer, slot, row : row + 1, :H] for row in (K_SCALE, K_ZERO))
            mark = marks_buffer[buffer, slot, TOKENS : TOKENS + 1, :group]
            score = exact_dot(q_RH * k_scale, codes_of(k_buffer[buffer, slot], bits), (1, 1), pieces)
            score += jnp.sum(q_RH * k_zero, axis=1, keepdims=True)
            scores.append((score * mark if norm else score) * log2_scale)
            there = (mark >= 0) & (slot < sweep.left(tile))
            visible.append(seen(sweep.group(tile, slot) * group + token) & there)
        weights = extend(state, scores, visible)
        for part in range(channel_groups):
            columns = slice(part * channels, (part + 1) * channels)
            out, zeros = 0.0, 0.0
            for weight, slot in zip(weights, (at + n for n in range(slots)), strict=True):
                scale_row = VALUES + part
                zero_row = scale_row + channel_groups
                v_scale, v_zero = (marks_buffer[buffer, slot, row : row + 1, :group] for row in (scale_row, zero_row))
                codes = codes_of(v_buffer[buffer, slot, :, columns], bits)
                out += exact_dot(weight * v_scale, codes, (1, 0), pieces)
                zeros += weight * v_zero
            acc[:, columns] += out + jnp.sum(zeros, axis=1, keepdims=True)

    def visit(tile: jax.Array, buffer: jax.Array) -> None:
        stream.wait(sweep, tile, buffer)
        whole = sweep.left(tile) == width
        pl.when(whole)(lambda: compute(tile, buffer, jnp.int32(0), width))

        @pl.when(jnp.logical_not(whole))
        def _():
            part = sweep.part
            lax.fori_loop(0, sweep.parts(tile), lambda n, _: compute(tile, buffer, n * part, part), None)

    state.clear()
    sweep = sweep_of(turn, table)
    following = sweep_of(jnp.minimum(turn + 1, turns - 1), next_table)
    run_tiles(stream, sweep, following, turn == 0, turn + 1 == turns, buffer_ref, visit)

    k_EH, v_EH, pos_1E = exact_k_ref[...], exact_v_ref[...], exact_pos_ref[...]
    precision = lax.Precision.HIGHEST if k_EH.dtype == jnp.float32 else None
    contract = partial(lax.dot_general, precision=precision, preferred_element_type=jnp.float32)
    scores = contract(q_ref[...].astype(k_EH.dtype), k_EH, (((1,), (1,)), ((), ()))) * log2_scale
    (weights,) = extend(state, [scores], [seen(pos_1E) & (pos_1E >= 0)])
    acc[...] += contract(weights.astype(v_EH.dtype), v_EH, (((1,), (0,)), ((), ())))
    out_ref[...] = state.output().astype(out_ref.dtype)


def decode(
    operands: DecodeOperands, runs_P4: jax.Array, spec: AttentionSpec, *, group: int, bits: int, norm: bool
) -> jax.Array:
    """Output `[P, R, H]`; `runs_P4` is `group_runs`.

    Raises:
        ValueError: the exact tokens of a head do not fit vector memory.
    """
    (P, R, H), E = operands.q_PRH.shape, operands.exact_k_PEH.shape[1]
    (J, M, L), words = operands.marks_PJML.shape[1:], operands.k_codes.shape[1]
    width = WIDER * limits.WIDEST_TILE["forward"]
    pieces = 3 if operands.q_PRH.dtype == jnp.float32 else 2
    order = deal_heads(runs_P4[:, 3])
    turns = order.shape[0] // 2

    def here(core: jax.Array, turn: jax.Array, order: Any, *_: Any) -> tuple:
        return jnp.minimum(order[core * turns + turn], P - 1), 0, 0

    def after(core: jax.Array, turn: jax.Array, order: Any, *_: Any) -> tuple:
        return here(core, jnp.minimum(turn + 1, turns - 1), order)

    def mine(core: jax.Array, turn: jax.Array, order: Any, *_: Any) -> tuple:
        return order[core * turns + turn], 0, 0

    hbm = pl.BlockSpec(memory_space=pltpu.HBM)
    in_vmem = [pl.BlockSpec((None, *x.shape[1:]), here) for x in operands[:5]]
    in_smem = [pl.BlockSpec((None, 2, J), index, memory_space=pltpu.SMEM) for index in (here, after)]
    item = operands.exact_k_PEH.dtype.itemsize
    need = (
        4 * limits.padded_bytes(E, H, item)
        + 2 * width * (2 * limits.padded_bytes(words, H, 4) + limits.padded_bytes(M, L, 4))
        + 6 * width * limits.padded_bytes(group, H, 2)
        + 8 * limits.padded_bytes(R, max(H, E, width * group), 4)
    )
    if need > limits.VECTOR_MEMORY:
        raise ValueError(
            f"The decode kernel needs {need / 2**20:.1f} MiB of the TPU's vector memory for {E} exact tokens and "
            f"{R} rows of queries; wanted at most {limits.VECTOR_MEMORY // 2**20}. Use impl='xla'."
        )
    tokens = P * (J * group + E)
    out = pl.pallas_call(
        partial(decode_kernel, spec=spec, group=group, bits=bits, norm=norm, pieces=pieces, width=width),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=2,
            grid=(2, turns),
            in_specs=[*in_vmem, *in_smem, hbm, hbm, hbm],
            out_specs=pl.BlockSpec((None, R, H), mine),
            scratch_shapes=[
                *[pltpu.VMEM((2, width, words, H), jnp.uint32)] * 2,
                pltpu.VMEM((2, width, M, L), jnp.float32),
                pltpu.VMEM((R, H), jnp.float32),
                *[pltpu.VMEM((R, limits.LANES), jnp.float32)] * 2,
                pltpu.SMEM((1,), jnp.int32),
                pltpu.SemaphoreType.DMA((2,)),
            ],
        ),
        out_shape=jax.ShapeDtypeStruct((2 * turns, R, H), operands.q_PRH.dtype),
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "arbitrary"), vmem_limit_bytes=limits.VECTOR_MEMORY
        ),
        cost_estimate=pl.CostEstimate(
            flops=4 * tokens * R * H, transcendentals=tokens * R, bytes_accessed=tokens * H * bits // 4
        ),
        name="decode_attention",
    )(order, runs_P4.reshape(-1), *operands[:6], operands.table_P2J, *operands[6:])
    return out[:P]
