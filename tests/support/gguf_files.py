"""GGUF files for tests, written as llama.cpp's converter lays them out."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from checkpoints import GOLDEN, WEIGHTS
from gguf import GGMLQuantizationType, GGUFWriter
from safetensors.numpy import load_file

from elastic_jax.config import ModelConfig

NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "model.layers.": "blk.",
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
}


def interleave(weight: np.ndarray, heads: int) -> np.ndarray:
    """The row order of llama.cpp's rotary embedding: pairs of neighbours instead of two halves."""
    halves = weight.reshape(heads, 2, -1, *weight.shape[1:])
    return np.ascontiguousarray(np.moveaxis(halves, 1, 2)).reshape(weight.shape)


def metadata(config: ModelConfig) -> dict[str, Any]:
    return {
        "block_count": config.num_layers,
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_heads,
        "attention.head_count_kv": config.num_kv_heads,
        "attention.key_length": config.head_dim,
        "attention.value_length": config.head_dim,
        "attention.layer_norm_rms_epsilon": config.rms_norm_eps,
        "rope.dimension_count": config.head_dim,
        "rope.freq_base": config.rope.theta,
    }


def write_gguf(
    file: Path,
    name: str,
    *,
    encode: Callable[[np.ndarray], tuple[np.ndarray, GGMLQuantizationType | None]] = lambda x: (x, None),
    extra_metadata: dict[str, Any] | None = None,
    extra_tensors: dict[str, np.ndarray] | None = None,
) -> Path:
    """The golden model `name` as GGUF; `encode` stores its matrices (as float32 by default)."""
    from elastic_jax.files import read_json

    config = ModelConfig.from_hf(read_json(GOLDEN / name / "config.json"))
    writer = GGUFWriter(file, config.family)
    for key, value in (metadata(config) | (extra_metadata or {})).items():
        key = key if key.startswith(("tokenizer.", "split.")) else f"{config.family}.{key}"
        if isinstance(value, list):
            writer.add_array(key, value)
        elif isinstance(value, str):
            writer.add_string(key, value)
        elif isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, int):
            writer.add_uint32(key, value)
        else:
            writer.add_float32(key, value)
    for hf_name, tensor in load_file(GOLDEN / name / WEIGHTS).items():
        tensor = tensor.astype(np.float32)
        if config.family == "llama" and ".q_proj." in hf_name:
            tensor = interleave(tensor, config.num_heads)
        if config.family == "llama" and ".k_proj." in hf_name:
            tensor = interleave(tensor, config.num_kv_heads)
        for theirs, ours in NAMES.items():
            hf_name = hf_name.replace(theirs, ours)
        stored, kind = encode(tensor) if tensor.ndim == 2 else (tensor, None)
        writer.add_tensor(hf_name, stored, raw_dtype=kind)
    for key, tensor in (extra_tensors or {}).items():
        writer.add_tensor(key, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file
