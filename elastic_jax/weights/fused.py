"""Matrices that some families store as one, rows after rows: read as if they lay apart, written as one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from elastic_jax.config import ModelConfig
from elastic_jax.config.families import FAMILIES
from elastic_jax.weights.names import Part
from elastic_jax.weights.source import TensorInfo, TensorSource


class _Rows(NamedTuple):
    """Where a matrix lies in the tensor that holds it."""

    tensor: str
    start: int


class SplitTensors:
    """The tensors of a checkpoint with every fused matrix of its family under the names of its parts.

    A fused matrix of another height than the configuration says stays whole, and is reported as unexpected.
    """

    def __init__(self, source: TensorSource, config: ModelConfig):
        self._source = source
        self._rows: dict[str, _Rows] = {}
        tensors = dict(source.tensors)
        for name in source.tensors:
            parts = _parts(name, config)
            if parts and source.tensors[name].shape[:1] == (sum(parts.values()),):
                whole, start = tensors.pop(name), 0
                for part, rows in parts.items():
                    tensors[part] = TensorInfo((rows, *whole.shape[1:]), whole.dtype)
                    self._rows[part] = _Rows(name, start)
                    start += rows
        self.tensors: Mapping[str, TensorInfo] = tensors

    def read(self, name: str, part: Part = ()) -> np.ndarray:
        """A tensor, or the given block of it; of a fused matrix only the rows of this part are read."""
        if name not in self._rows:
            return self._source.read(name, part)
        rows, shape = self._rows[name], self.tensors[name].shape
        first, *rest = part or tuple(slice(0, size) for size in shape)
        return self._source.read(rows.tensor, (slice(rows.start + first.start, rows.start + first.stop), *rest))


def fused_place(name: str, config: ModelConfig) -> tuple[str, int]:
    """The tensor of a checkpoint that holds the matrix `name`, and its place in it: itself, unless it is fused."""
    for whole, parts in FAMILIES[config.family].fused.items():
        for place, part in enumerate(parts):
            if name.endswith(f".{part}.weight"):
                return name.replace(f".{part}.", f".{whole}."), place
    return name, 0


def _parts(name: str, config: ModelConfig) -> dict[str, int]:
    """The matrices that a fused tensor holds, in order, and the rows of each; none for another tensor."""
    heads = {"q_proj": config.num_heads, "k_proj": config.num_kv_heads, "v_proj": config.num_kv_heads}
    rows = {part: count * config.head_dim for part, count in heads.items()}
    for whole, parts in FAMILIES[config.family].fused.items():
        if name.endswith(f".{whole}.weight"):
            names = {name.replace(f".{whole}.", f".{part}."): part.rpartition(".")[2] for part in parts}
            return {part: rows.get(matrix, config.intermediate_size) for part, matrix in names.items()}
    return {}
