"""The interface of every checkpoint reader, and the check of the names and shapes of its tensors."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from elastic_jax.config import ModelConfig
from elastic_jax.errors import CheckpointError
from elastic_jax.weights.names import Entry, Part


@dataclass(frozen=True)
class TensorInfo:
    """Shape and stored dtype of a tensor that has not been read yet."""

    shape: tuple[int, ...]
    dtype: np.dtype


class TensorSource(Protocol):
    """Tensors of a checkpoint by Hugging Face name, read one at a time so that host memory stays small."""

    @property
    def tensors(self) -> Mapping[str, TensorInfo]: ...

    def read(self, name: str, part: Part = ()) -> np.ndarray:
        """A tensor, or the given block of it."""
        ...


@dataclass(frozen=True)
class Checkpoint:
    """An opened checkpoint: where it is, the model that it describes, and its tensors."""

    where: str
    config: ModelConfig
    source: TensorSource


def check_tensors(where: str, found: Mapping[str, TensorInfo], wanted: Iterable[Entry], ignored: set[str]) -> None:
    """Lists every missing, unexpected and mis-shaped tensor at once.

    Raises:
        CheckpointError: with the Hugging Face name, our path, both shapes and, where one is known, the remedy.
    """
    by_name = {name: entry for entry in wanted for name in entry.hf_names()}
    problems = []
    for name, entry in by_name.items():
        if name not in found:
            problems.append(f"missing    {name} (our {entry.path}), want shape {list(entry.hf_shape)}{_missing(name)}")
        elif found[name].shape != entry.hf_shape:
            got = found[name].shape
            hint = ": transposed?" if got == entry.hf_shape[::-1] else ""
            problems.append(f"mis-shaped {name} (our {entry.path}), got {list(got)}, want {list(entry.hf_shape)}{hint}")
    for name in sorted(set(found) - set(by_name) - ignored):
        problems.append(f"unexpected {name}, shape {list(found[name].shape)}{_unexpected(name)}")
    if problems:
        raise CheckpointError(
            f"{where}: {len(problems)} tensors do not fit the configuration.\n  "
            + "\n  ".join(problems)
            + "\nCheck that the configuration and the weights belong together and that the download is complete."
        )


def _missing(name: str) -> str:
    return ": set tie_word_embeddings if the head shares the embedding" if name == "lm_head.weight" else ""


def _unexpected(name: str) -> str:
    if name.endswith((".q_proj.bias", ".k_proj.bias", ".v_proj.bias", ".o_proj.bias")):
        return ": the configuration has no such bias"
    if name.endswith((".q_norm.weight", ".k_norm.weight")):
        return ": this family has no query and key norm"
    return ""
