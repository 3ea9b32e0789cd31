"""Where the tokens of a batch are: positions, sequences and lengths of padded or packed rows.

Prompts are put into a batch, and refused where they do not fit the model, here too.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from elastic_jax.config import ModelConfig
from elastic_jax.errors import ElasticError, ShapeError, shown
from pallas_kernels import check_rows


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Layout:
    """Token metadata of a batch of rows; row b holds M sequences (M = 1 unless packed)."""

    positions_BT: jax.Array
    """Position inside the token's own sequence."""
    sequence_BT: jax.Array
    """Index 0 ... M-1 of the token's sequence; M for padding."""
    lengths_BM: jax.Array
    """Tokens in each sequence."""
    lengths: jax.Array | None
    """As given: tokens of each right-padded row."""
    segment_ids: jax.Array | None
    """As given: 1, 2, ... per packed sequence, 0 for padding."""

    @property
    def packed(self) -> bool:
        return self.segment_ids is not None

    @property
    def seq_len_BT(self) -> jax.Array:
        """Length of the sequence that each token belongs to."""
        return per_token(self.lengths_BM, self)


def make_layout(
    shape: tuple[int, int],
    *,
    lengths: jax.Array | None = None,
    segment_ids: jax.Array | None = None,
    num_segments: int | None = None,
    block_size: int = 128,
) -> Layout:
    """Layout of `[B, T]` tokens, right-padded by `lengths` or packed by `segment_ids` (not both).

    `num_segments` bounds the sequences of a packed row; by default one per block of `block_size` tokens, the most
    that can fit since every sequence starts a block.
    """
    if lengths is not None and segment_ids is not None:
        raise ShapeError(
            "lengths and segment_ids were both given. Use lengths for padded rows, segment_ids for packed ones."
        )
    B, T = shape
    index_T = jnp.arange(T, dtype=jnp.int32)
    if segment_ids is None:
        lengths_B = jnp.full((B,), T, jnp.int32) if lengths is None else jnp.asarray(lengths, jnp.int32)
        _check_shape("lengths", lengths_B, (B,))
        _check_rows(B, T, block_size, None, None if lengths is None else lengths_B)
        positions = jnp.broadcast_to(index_T, (B, T))
        sequence = jnp.where(positions < lengths_B[:, None], 0, 1)
        return Layout(positions, sequence, lengths_B[:, None], None if lengths is None else lengths_B, None)
    segments = jnp.asarray(segment_ids, jnp.int32)
    _check_shape("segment_ids", segments, (B, T))
    _check_rows(B, T, block_size, segments, None)
    M = num_segments or -(-T // block_size)
    if not isinstance(segments, jax.core.Tracer) and (most := np.asarray(segments).max()) > M:
        raise ShapeError(f"segment_ids holds {most}; want ids from 1 to num_segments = {M}, and 0 for padding.")
    previous = jnp.pad(segments, ((0, 0), (1, 0)))[:, :-1]
    starts = jnp.where((segments != previous) & (segments > 0), index_T, 0)
    positions = jnp.where(segments > 0, index_T[None] - jax.lax.cummax(starts, axis=1), 0)
    sequence = jnp.where(segments > 0, segments - 1, M)
    lengths_BM = (sequence[:, None, :] == jnp.arange(M)[None, :, None]).sum(-1, dtype=jnp.int32)
    return Layout(positions, sequence, lengths_BM, None, segments)


def per_token(values_BM: jax.Array, layout: Layout) -> jax.Array:
    """Spreads one value per sequence over its tokens; 0 for padding."""
    padded = jnp.pad(values_BM, ((0, 0), (0, 1)))
    return jnp.take_along_axis(padded, layout.sequence_BT, axis=1, mode="clip")


def squeeze_sequences(values_BM: jax.Array, layout: Layout) -> jax.Array:
    """Drops the sequence axis of rows that hold one sequence each: `[B, M, ...]` to `[B, ...]` unless packed."""
    return values_BM if layout.packed else values_BM[:, 0]


def pad_rows(
    rows: Sequence[Sequence[int] | np.ndarray], width: int, count: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """A batch of rows of tokens: ids int32 `[B, width]`, right-padded with 0, and lengths int32 `[B]`.

    B is `count`, by default as many as there are rows; those without a row of their own hold one token, 0.
    """
    count = len(rows) if count is None else count
    ids, lengths = np.zeros((count, width), np.int32), np.ones(count, np.int32)
    for index, row in enumerate(rows):
        ids[index, : len(row)], lengths[index] = row, len(row)
    return ids, lengths


def whole_number(name: str, value: object) -> int:
    """The number as a Python int, where `value` is an integer of any library; raises `ShapeError` otherwise."""
    try:
        if not isinstance(value, bool):
            return operator.index(value)  # pyrefly: ignore[bad-argument-type]
    except TypeError:
        pass
    raise ShapeError(f"{name} is {shown(value)}; want a whole number.")


def token_ids(name: str, values: object) -> tuple[int, ...]:
    """Token ids as Python ints; raises `ShapeError` for anything but a sequence of whole numbers."""
    try:
        given = iter(values)  # pyrefly: ignore[no-matching-overload]
    except TypeError:
        raise ShapeError(f"{name} is {shown(values)}; want a sequence of token ids.") from None
    return tuple(whole_number(f"a token id of {name}", value) for value in given)


def check_prompts(
    config: ModelConfig, input_ids: jax.Array | np.ndarray, lengths: jax.Array | None = None, new_tokens: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Right-padded prompts `[B, T]` that the model can read, and their lengths int32 `[B]`, T for all by default.

    Raises:
        ShapeError: rows of another form or without a token, ids that the vocabulary does not have, or more tokens,
            `new_tokens` included, than the model has positions.
    """
    ids = _whole_numbers("input_ids", input_ids)
    if ids.ndim != 2 or 0 in ids.shape:
        raise ShapeError(f"input_ids has shape {ids.shape}; want [batch, tokens] with at least one row and one token.")
    B, T = ids.shape
    lengths_B = np.full((B,), T, np.int32) if lengths is None else _whole_numbers("lengths", lengths)
    if lengths_B.shape != (B,) or (lengths_B < 1).any() or (lengths_B > T).any():
        raise ShapeError(f"lengths is {lengths_B.tolist()}; want {B} values from 1 to {T}, one per row.")
    check_token_ids(ids[np.arange(T) < lengths_B[:, None]], config)
    longest = int(lengths_B.max())
    more = f" + max_new_tokens {new_tokens} = {longest + new_tokens} positions" if new_tokens else ""
    check_positions(config, longest + new_tokens, f"prompt of {longest} tokens{more}", "Shorten the prompt")
    return ids, lengths_B.astype(np.int32)


def check_call(config: ModelConfig, input_ids: Any, lengths: Any, segment_ids: Any) -> Any:
    """The token ids `[B, T]` of a call of a model, checked as those of a prompt where all of their values are known.

    Raises:
        ShapeError: values that are no whole numbers, or that the vocabulary does not have; padding may hold any.
    """
    given = (input_ids, lengths, segment_ids)
    if any(isinstance(x, jax.core.Tracer) or (isinstance(x, jax.Array) and not x.is_fully_addressable) for x in given):
        return input_ids
    ids = _whole_numbers("input_ids", input_ids)
    if ids.ndim != 2:
        raise ShapeError(f"input_ids has shape {ids.shape}; want [batch, tokens]. Add a batch axis.")
    valid = np.ones(ids.shape, bool)
    if lengths is not None and (lengths_B := _whole_numbers("lengths", lengths)).shape == ids.shape[:1]:
        valid = np.arange(ids.shape[1]) < lengths_B[:, None]
    if segment_ids is not None and (segments := _whole_numbers("segment_ids", segment_ids)).shape == ids.shape:
        valid &= segments > 0
    if valid.any():
        check_token_ids(ids[valid], config)
    return input_ids if isinstance(input_ids, jax.Array) else jnp.asarray(ids)


def _whole_numbers(name: str, values: Any) -> np.ndarray:
    try:
        array = np.asarray(values)
    except ValueError:
        raise ShapeError(
            f"the rows of {name} have different lengths. Fill them up on the right to the longest, and give lengths."
        ) from None
    if array.dtype.kind not in "iu" and array.size:
        raise ShapeError(f"{name} holds {array.dtype}; want whole numbers.")
    return array


def check_positions(
    config: ModelConfig, tokens: int, what: str, shorten: str, error: type[ElasticError] = ShapeError
) -> None:
    """Raises `error` where a sequence has more tokens than the model has positions.

    Args:
        tokens: of the sequence.
        what: names it, with its length.
        shorten: how to make it fit.
        error: `ConfigError` where a setting gives the length.
    """
    have = config.positions
    if have is not None and tokens > have:
        scaling = "a rope scaling" if config.rope.type == "default" else f"a larger {config.rope.type} rope scaling"
        raise error(
            f"{what}; the model has {have} positions. {shorten}, or give the checkpoint {scaling} for longer contexts."
        )


def check_token_ids(ids: Sequence[int] | np.ndarray, config: ModelConfig) -> None:
    """Raises `ShapeError` for ids that the embedding table does not have, as a wrong tokenizer gives them."""
    least, most = np.min(ids), np.max(ids)
    if least < 0 or most >= config.vocab_size:
        raise ShapeError(
            f"token ids run from {least} to {most}; want ids in [0, {config.vocab_size}). Wrong tokenizer?"
        )


def _check_rows(B: int, T: int, block_size: int, segment_ids: jax.Array | None, lengths: jax.Array | None) -> None:
    try:
        check_rows(B, T, block_size, segment_ids, lengths)
    except ValueError as error:
        raise ShapeError(str(error)) from None


def _check_shape(name: str, array: jax.Array, want: tuple[int, ...]) -> None:
    if array.shape != want:
        raise ShapeError(f"{name} has shape {array.shape}; want {want} to fit the tokens.")
