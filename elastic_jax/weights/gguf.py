"""Opening a GGUF file: metadata becomes a configuration, tensors are dequantised and take Hugging Face names."""

from __future__ import annotations

import importlib.util
import re
import struct
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import ml_dtypes
import numpy as np

from elastic_jax.config import ModelConfig
from elastic_jax.errors import CheckpointError
from elastic_jax.weights.gguf_config import config_from_metadata
from elastic_jax.weights.names import Part
from elastic_jax.weights.source import Checkpoint, TensorInfo

if TYPE_CHECKING:
    from gguf import GGUFReader, ReaderTensor

_TOP = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
_LAYER = {
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_LAYER_NAME = re.compile(r"blk\.(\d+)\.(\w+)\.(weight|bias)")
ROPE_FACTORS = "rope_freqs.weight"
"""Per-channel rope divisors of Llama 3 files; the configuration absorbs them."""

_STORED = {"F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16}
_QUANTISED = ("Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q4_K", "Q5_K", "Q6_K")


def open_gguf(file: Path) -> Checkpoint:
    """Opens a GGUF file of the llama, qwen2 or qwen3 architecture; tensors are dequantised one at a time.

    Raises:
        CheckpointError: not GGUF, truncated, one of several parts, or a tensor of an unsupported type.
        ConfigError: an architecture or setting that this library cannot reproduce.
    """
    reader = open_reader(file)
    metadata = {name: field.contents() for name, field in reader.fields.items() if not name.startswith("tokenizer.")}
    metadata |= {name: reader.fields[name].contents() for name in reader.fields if name.endswith("_token_id")}
    if (parts := metadata.get("split.count", 1)) != 1:
        raise CheckpointError(
            f"{file} is one of {parts} parts of a model. Merge them into one file: llama-gguf-split --merge FIRST OUT."
        )
    by_name = {tensor.name: tensor for tensor in reader.tensors}
    if "token_embd.weight" not in by_name:
        raise CheckpointError(f"{file} has no token_embd.weight. It may be a vocabulary-only file; want a whole model.")
    factors = by_name.pop(ROPE_FACTORS, None)
    config = config_from_metadata(
        metadata,
        vocab_size=int(by_name["token_embd.weight"].shape[1]),
        tied="output.weight" not in by_name,
        attention_bias="blk.0.attn_q.bias" in by_name,
        rope_factors=None if factors is None else np.asarray(factors.data, np.float32),
    )
    return Checkpoint(str(file), config, _GGUFTensors(file, by_name, config))


def open_reader(file: Path) -> GGUFReader:
    """Opens a file with the `gguf` package; whatever way that fails, the error is a `CheckpointError`."""
    if importlib.util.find_spec("gguf") is None:
        raise CheckpointError(f"reading {file} needs the gguf package: pip install gguf.")
    try:
        stat = file.stat()
        return _parse(file, stat.st_mtime_ns, stat.st_size)
    except (ValueError, KeyError, IndexError, OverflowError, OSError, MemoryError, struct.error) as error:
        raise CheckpointError(
            f"{file} cannot be read as GGUF ({error}). It may be truncated or of another format: fetch it again."
        ) from error


@lru_cache(maxsize=1)
def _parse(file: Path, modified: int, size: int) -> GGUFReader:
    """Cached: parsing a vocabulary takes seconds, and the weights and the tokenizer both need it."""
    from gguf import GGUFReader

    return GGUFReader(file)


class _GGUFTensors:
    """Tensors of a GGUF file under their Hugging Face names."""

    def __init__(self, file: Path, by_name: Mapping[str, ReaderTensor], config: ModelConfig):
        unsupported = sorted(
            f"{t.name} ({t.tensor_type.name})"
            for t in by_name.values()
            if t.tensor_type.name not in _STORED and t.tensor_type.name not in _QUANTISED
        )
        if unsupported:
            raise CheckpointError(
                f"{file} has tensors of unsupported types: {', '.join(unsupported)}. "
                f"Supported: {', '.join((*_STORED, *_QUANTISED))}."
            )
        self._by_name = {_hf_name(name): tensor for name, tensor in by_name.items()}
        self._config = config
        self.tensors = {
            name: TensorInfo(
                tuple(int(n) for n in reversed(tensor.shape)),
                np.dtype(_STORED.get(tensor.tensor_type.name, np.float32)),
            )
            for name, tensor in self._by_name.items()
        }

    def read(self, name: str, part: Part = ()) -> np.ndarray:
        """Dequantises the whole tensor, even if only a block of it is asked for."""
        from gguf import dequantize

        tensor = self._by_name[name]
        values = dequantize(tensor.data, tensor.tensor_type).reshape(self.tensors[name].shape)
        if self._config.family == "llama" and ".self_attn.q_proj." in name:
            values = _half_split(name, values, self._config.num_heads)
        if self._config.family == "llama" and ".self_attn.k_proj." in name:
            values = _half_split(name, values, self._config.num_kv_heads)
        return values[part]


def _hf_name(name: str) -> str:
    """The Hugging Face name; an unknown name is returned unchanged and later reported as unexpected."""
    match = _LAYER_NAME.fullmatch(name)
    if match and match[2] in _LAYER:
        return f"model.layers.{match[1]}.{_LAYER[match[2]]}.{match[3]}"
    return _TOP.get(name, name)


def _half_split(name: str, values: np.ndarray, heads: int) -> np.ndarray:
    """Reorders the rows of each head from llama.cpp's rotary pairs (2i, 2i + 1) to halves (i, i + H/2)."""
    if values.shape[0] % (2 * heads):
        raise CheckpointError(f"{name} has {values.shape[0]} rows, which are not {heads} heads of even size.")
    pairs = values.reshape(heads, -1, 2, *values.shape[1:])
    return pairs.swapaxes(1, 2).reshape(values.shape)
