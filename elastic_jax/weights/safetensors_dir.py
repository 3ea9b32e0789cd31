"""Reads the tensors of a Hugging Face directory: one `model.safetensors`, or shards named by an index.

Only files that the index names are opened, and only inside the directory. Nothing is unpickled.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from elastic_jax.errors import CheckpointError
from elastic_jax.files import read_json
from elastic_jax.weights.names import Part
from elastic_jax.weights.source import TensorInfo

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"

DTYPES = {"F32": np.dtype(np.float32), "F16": np.dtype(np.float16), "BF16": np.dtype(ml_dtypes.bfloat16)}


class SafetensorsFiles:
    """Tensors of one or more safetensors files; each is read from disk when asked for.

    Raises:
        CheckpointError: a file that is absent, truncated or edited, a tensor held twice, an unsupported dtype.
    """

    def __init__(self, files: list[Path]):
        self.tensors: dict[str, TensorInfo] = {}
        self._handles: dict[str, Any] = {}
        for file in files:
            self._open(file)

    def _open(self, file: Path) -> None:
        from safetensors import SafetensorError, safe_open

        try:
            handle = safe_open(file, framework="numpy")
            slices = {name: handle.get_slice(name) for name in handle.keys()}
        except (SafetensorError, OSError) as error:
            raise CheckpointError(
                f"{file} cannot be read as safetensors ({error}). It may be truncated or edited: fetch it again."
            ) from error
        for name, piece in slices.items():
            if name in self.tensors:
                raise CheckpointError(f"{file} holds {name}, which another shard holds too; want each tensor once.")
            dtype = piece.get_dtype()
            if dtype not in DTYPES:
                raise CheckpointError(
                    f"{file} holds {name} as {dtype}; supported: {', '.join(DTYPES)}. "
                    "Quantised safetensors must be converted to one of these first."
                )
            self.tensors[name] = TensorInfo(tuple(piece.get_shape()), DTYPES[dtype])
            self._handles[name] = handle

    def read(self, name: str, part: Part = ()) -> np.ndarray:
        handle = self._handles[name]
        return handle.get_slice(name)[part] if part else handle.get_tensor(name)


def open_weights(directory: Path) -> SafetensorsFiles:
    """Opens the weights of a Hugging Face directory.

    Raises:
        CheckpointError: no safetensors, an unsafe or wrong index, or any file that is not whole.
    """
    if (directory / SINGLE).exists():
        return SafetensorsFiles([_inside(directory, SINGLE)])
    if (directory / INDEX).exists():
        return _open_sharded(directory)
    pickled = sorted(p.name for p in directory.iterdir() if p.suffix in (".bin", ".pt", ".pth", ".ckpt"))
    if pickled:
        raise CheckpointError(
            f"{directory} has weights as {', '.join(pickled)}, a pickle, which can run code and is never loaded. "
            "Convert it once with transformers: AutoModelForCausalLM.from_pretrained(...).save_pretrained(...)."
        )
    raise CheckpointError(f"{directory} has neither {SINGLE} nor {INDEX}. Is the download complete?")


def _open_sharded(directory: Path) -> SafetensorsFiles:
    index_file = directory / INDEX
    index = read_json(index_file)
    weight_map = index.get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
        raise CheckpointError(f"{index_file} has no weight_map from tensor names to file names.")
    files = SafetensorsFiles([_inside(directory, name) for name in sorted(set(weight_map.values()))])

    problems = [f"{name} is in the index but in no shard" for name in sorted(set(weight_map) - set(files.tensors))]
    problems += [f"{name} is in a shard but not in the index" for name in sorted(set(files.tensors) - set(weight_map))]
    if problems:
        raise CheckpointError(f"{index_file} does not fit its shards:\n  " + "\n  ".join(problems))
    return files


def _inside(directory: Path, name: str) -> Path:
    """The path of a shard; refuses names and links that lead out of the checkpoint."""
    if name != Path(name).name or name in ("", ".", "..") or "\0" in name or not name.endswith(".safetensors"):
        raise CheckpointError(f"{directory / INDEX} names the shard {name!r}; want a bare *.safetensors file name.")
    file = directory / name
    if not file.exists():
        raise CheckpointError(f"{file} is missing. Is the download complete?")
    root = directory.resolve()
    if root.parent.name == "snapshots":  # the hub cache keeps a repository's files as links into its own blobs
        root = root.parent.parent
    if not file.resolve().is_relative_to(root):
        raise CheckpointError(f"{file} is a link to {file.resolve()}, outside the checkpoint. Copy the file instead.")
    return file
