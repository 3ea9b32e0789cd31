"""Translates names and layouts between our stacked parameters and the per-layer tensors of Hugging Face.

A kernel `[in..., out...]` of ours is the transpose of a torch weight `[out, in]` with heads flattened; biases are
flattened; the embedding table is the same. Router names are those of released Elastic Attention checkpoints.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np

_LAYER = "model.layers.{}."
_ROUTER = _LAYER + "self_attn.mask_allocator."

_TOP = {
    "embed.embedding": "model.embed_tokens.weight",
    "norm.scale": "model.norm.weight",
    "lm_head.kernel": "lm_head.weight",
    "score.kernel": "score.weight",
}
_MODULES = {
    "layers.attn_out_norm": _LAYER + "post_attention_layernorm",
    "layers.mlp_out_norm": _LAYER + "post_feedforward_layernorm",
    "layers.input_norm": _LAYER + "input_layernorm",
    "layers.post_attn_norm": _LAYER + "post_attention_layernorm",
    **{f"layers.attn.{name}": f"{_LAYER}self_attn.{name}" for name in ("q_proj", "k_proj", "v_proj", "o_proj")},
    **{f"layers.attn.{name}": f"{_LAYER}self_attn.{name}" for name in ("q_norm", "k_norm")},
    **{f"layers.mlp.{name}": f"{_LAYER}mlp.{name}" for name in ("gate_proj", "up_proj", "down_proj")},
    "layers.router.task.fc1": _ROUTER + "cls_feat_extractor.0",
    "layers.router.task.fc2": _ROUTER + "cls_feat_extractor.2",
    "layers.router.head.fc1": _ROUTER + "cls_router_head_agnostic.0",
    "layers.router.head.fc2": _ROUTER + "cls_router_head_agnostic.2",
    "layers.router.head.fc3": _ROUTER + "cls_router_head_agnostic.4",
}
_LEAVES = {"kernel": "weight", "scale": "weight", "bias": "bias"}

Part = tuple[slice, ...]
"""A block of an array: start and stop along every axis."""

ROUTER_PREFIX = "layers.router."
ROUTER_PROBE = _ROUTER.format(0) + "cls_feat_extractor.0.weight"
"""The tensor that tells whether a checkpoint has routers, and how wide they are."""


@dataclass(frozen=True)
class Entry:
    """One parameter of ours: its path and shape (with the layer axis), and how Hugging Face names and lays it out."""

    path: str
    shape: tuple[int, ...]
    template: str
    kind: Literal["kernel", "vector", "table"]

    @property
    def stacked(self) -> bool:
        return self.path.startswith("layers.")

    @property
    def layer_shape(self) -> tuple[int, ...]:
        return self.shape[1:] if self.stacked else self.shape

    @property
    def hf_shape(self) -> tuple[int, ...]:
        if self.kind == "table":
            return self.shape
        if self.kind == "vector":
            return (math.prod(self.layer_shape),)
        return (math.prod(self.layer_shape) // self._fan_in, self._fan_in)

    @property
    def _inputs(self) -> int:
        """Leading axes of a layer's kernel that are its inputs."""
        return 2 if self.path == "layers.attn.o_proj.kernel" else 1

    @property
    def _fan_in(self) -> int:
        return math.prod(self.layer_shape[: self._inputs])

    def hf_names(self) -> list[str]:
        """Hugging Face names: one per layer, in order, for a stacked parameter."""
        return [self.template.format(i) for i in range(self.shape[0])] if self.stacked else [self.template]

    def hf_part(self, part: Part) -> Part:
        """Where a block of one layer of ours lies in its Hugging Face tensor.

        Of axes that are flattened there (heads, head_dim), only the first may be cut.
        """
        if self.kind == "table":
            return part
        if self.kind == "vector":
            return (_flat(part, self.layer_shape),)
        n = self._inputs
        return _flat(part[n:], self.layer_shape[n:]), _flat(part[:n], self.layer_shape[:n])

    def to_ours(self, tensor: np.ndarray, shape: tuple[int, ...] | None = None) -> np.ndarray:
        """Converts a Hugging Face tensor to `layer_shape`, or a part of it (see `hf_part`) to a block of `shape`."""
        return (tensor.T if self.kind == "kernel" else tensor).reshape(self.layer_shape if shape is None else shape)

    def to_hf(self, array: np.ndarray) -> np.ndarray:
        """Converts one layer of ours to a contiguous Hugging Face tensor of `hf_shape`."""
        if self.kind == "kernel":
            array = array.reshape(self.hf_shape[::-1]).T
        return np.ascontiguousarray(array.reshape(self.hf_shape))


def _flat(part: Part, shape: tuple[int, ...]) -> slice:
    """The slice that the block `part` becomes when the axes of `shape` are flattened to one."""
    inner = math.prod(shape[1:])
    assert all(cut == slice(0, size) for cut, size in zip(part[1:], shape[1:], strict=True)), part
    return slice(part[0].start * inner, part[0].stop * inner)


def entries(shapes: dict[str, tuple[int, ...]]) -> Iterator[Entry]:
    """The table of a model, from the shapes of its parameters by path."""
    for path, shape in shapes.items():
        module, leaf = path.rsplit(".", 1)
        template = _TOP.get(path) or f"{_MODULES[module]}.{_LEAVES[leaf]}"
        kind = "table" if path == "embed.embedding" else "kernel" if leaf == "kernel" else "vector"
        yield Entry(path, tuple(shape), template, kind)


SCORE = "score.kernel"
SCORE_TENSOR = "score.weight"
