"""GGUF: names, the rotary row order, metadata, every supported encoding, and damaged files."""

import json
from pathlib import Path

import numpy as np
import pytest
from checkpoints import GOLDEN
from gguf import GGMLQuantizationType, dequantize, quantize
from gguf_files import write_gguf

from elastic_jax.config import ModelConfig
from elastic_jax.errors import CheckpointError, ConfigError
from elastic_jax.generation import end_ids
from elastic_jax.model import to_params
from elastic_jax.weights import from_pretrained
from elastic_jax.weights.gguf import open_gguf

LLAMA31 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}


def assert_same_model(got: Path, want: Path) -> None:
    got_params, want_params = (to_params(from_pretrained(path, dtype="float32")) for path in (got, want))
    for path, array in want_params.items():
        np.testing.assert_array_equal(got_params[path], array, path)


@pytest.mark.parametrize("name", ["llama_tied", "llama_bias", "qwen2", "qwen3_untied"])
def test_the_same_model_as_from_hugging_face(name: str, tmp_path: Path) -> None:
    file = write_gguf(tmp_path / "model.gguf", name)
    assert_same_model(file, GOLDEN / name)
    assert open_gguf(file).config == ModelConfig.from_hf(json.loads((GOLDEN / name / "config.json").read_text()))


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1"])
def test_encodings(kind: str, tmp_path: Path) -> None:
    kind = GGMLQuantizationType[kind]
    file = write_gguf(tmp_path / "model.gguf", "qwen3_tied", encode=lambda x: (quantize(x, kind), kind))
    source = open_gguf(file).source
    name = "model.layers.1.mlp.down_proj.weight"
    original = to_params(from_pretrained(GOLDEN / "qwen3_tied", dtype="float32"))["layers.mlp.down_proj.kernel"][1].T
    np.testing.assert_array_equal(source.read(name), dequantize(quantize(np.asarray(original), kind), kind))
    stored = {"F16": "float16", "BF16": "bfloat16"}.get(kind.name, "float32")
    assert str(source.tensors[name].dtype) == stored
    assert str(to_params(from_pretrained(file, dtype="auto"))["embed.embedding"].dtype) == "float32", "norms are F32"


def q4_k(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """One random Q4_K super-block of 256 values, and the values by the formula of the format."""
    d, dmin = np.float16(rng.uniform(0.01, 0.1)), np.float16(rng.uniform(0.01, 0.1))
    scales, mins = rng.integers(0, 64, 8), rng.integers(0, 64, 8)
    codes = rng.integers(0, 16, (8, 32))
    packed = np.zeros(12, np.uint8)
    for j in range(4):
        packed[j] = scales[j] | (scales[j + 4] >> 4) << 6
        packed[j + 4] = mins[j] | (mins[j + 4] >> 4) << 6
        packed[j + 8] = (scales[j + 4] & 15) | (mins[j + 4] & 15) << 4
    nibbles = (codes[0::2] | codes[1::2] << 4).astype(np.uint8)
    block = np.concatenate([np.array([d, dmin]).view(np.uint8), packed, nibbles.reshape(-1)])
    values = np.float32(d) * scales[:, None] * codes - np.float32(dmin) * mins[:, None]
    return block, values.reshape(-1)


def q6_k(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """One random Q6_K super-block of 256 values, and the values by the formula of the format."""
    d = np.float16(rng.uniform(0.01, 0.1))
    scales = rng.integers(-128, 128, 16).astype(np.int8)
    codes = rng.integers(0, 64, (2, 4, 32))
    low = np.stack([codes[:, 0] & 15 | (codes[:, 2] & 15) << 4, codes[:, 1] & 15 | (codes[:, 3] & 15) << 4], 1)
    high = sum((codes[:, i] >> 4) << 2 * i for i in range(4))
    block = np.concatenate(
        [low.astype(np.uint8).reshape(-1), high.astype(np.uint8).reshape(-1), scales.view(np.uint8),
         np.array([d]).view(np.uint8)]
    )  # fmt: skip
    values = np.float32(d) * np.repeat(scales.astype(np.float32), 16) * (codes.reshape(-1) - 32)
    return block, values


@pytest.mark.parametrize(("kind", "make"), [("Q4_K", q4_k), ("Q6_K", q6_k)])
def test_k_quants(kind: str, make, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    rows = [make(rng) for _ in range(3)]
    blocks = np.stack([block for block, _ in rows])

    def encode(matrix: np.ndarray) -> tuple[np.ndarray, GGMLQuantizationType | None]:
        embedding = matrix.shape[0] == 97
        return (blocks, GGMLQuantizationType[kind]) if embedding else (matrix, None)

    source = open_gguf(write_gguf(tmp_path / "model.gguf", "qwen3_tied", encode=encode)).source
    got = source.read("model.embed_tokens.weight")
    np.testing.assert_allclose(got, np.stack([values for _, values in rows]), rtol=1e-6)


def test_llama3_rope_divisors(tmp_path: Path) -> None:
    wavelength = 2 * np.pi * 10_000.0 ** (np.arange(0, 16, 2) / 16)
    smooth = np.clip((8192 / wavelength - 1.0) / 3.0, 0, 1)
    divisors = (1 / (smooth + (1 - smooth) / 8)).astype(np.float32)
    known = write_gguf(tmp_path / "known.gguf", "llama_tied", extra_tensors={"rope_freqs.weight": divisors})
    config = json.loads((GOLDEN / "llama_tied" / "config.json").read_text())
    config["rope_parameters"] = {"rope_theta": 10_000.0, "rope_type": "llama3", **LLAMA31}
    assert open_gguf(known).config == ModelConfig.from_hf(config)

    other = np.float32([1, 1, 1, 2, 2, 3, 3, 5])
    odd = write_gguf(tmp_path / "odd.gguf", "llama_tied", extra_tensors={"rope_freqs.weight": other})
    rope = open_gguf(odd).config.rope
    assert (rope.type, rope.attention_factor) == ("longrope", 1.0)
    assert rope.long_factor == rope.short_factor == tuple(other)

    scaling = {"rope.scaling.type": "linear", "rope.scaling.factor": 4.0}
    extra = {"rope_freqs.weight": other}
    both = write_gguf(tmp_path / "both.gguf", "llama_tied", extra_metadata=scaling, extra_tensors=extra)
    with pytest.raises(ConfigError, match="scales its positions twice"):
        open_gguf(both)


@pytest.mark.parametrize(
    ("ids", "ends"),
    [
        ({"eos": 0, "eot": 2, "eom": 5}, [0, 2, 5]),
        ({"eos": 2, "eot": 2, "padding": 2**32 - 1}, [2]),
        ({"eos": 2**32 - 1, "eot": 3}, [3]),
        ({}, []),
    ],
)
def test_end_tokens(ids: dict[str, int], ends: list[int], tmp_path: Path) -> None:
    extra = {f"tokenizer.ggml.{name}_token_id": value for name, value in ids.items()}
    config = open_gguf(write_gguf(tmp_path / "model.gguf", "llama_tied", extra_metadata=extra)).config
    assert end_ids(config) == ends
    assert config.hf_extra.get("pad_token_id") is None


def test_rope_scaling_in_metadata(tmp_path: Path) -> None:
    scaling = {"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0, "rope.scaling.original_context_length": 64}
    file = write_gguf(tmp_path / "model.gguf", "qwen2", extra_metadata=scaling)
    rope = open_gguf(file).config.rope
    assert (rope.type, rope.factor, rope.original_max_position) == ("yarn", 4.0, 64)
    factor_only = {"rope.scaling.factor": 4.0}
    rope = open_gguf(write_gguf(tmp_path / "factor.gguf", "qwen2", extra_metadata=factor_only)).config.rope
    assert (rope.type, rope.factor) == ("linear", 4.0)


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        ({"attention.scale": 0.5}, "qwen2.attention.scale=0.5"),
        ({"expert_count": 8}, "qwen2.expert_count=8"),
        ({"rope.dimension_count": 8}, "rope.dimension_count=8"),
        ({"attention.head_count_kv": [1, 2]}, "one number for all layers"),
        ({"rope.scaling.type": "spiral"}, "'spiral'"),
        ({"attention.head_count": 0}, "attention.head_count"),
    ],
)
def test_metadata_that_is_not_understood(extra: dict, words: str, tmp_path: Path) -> None:
    file = write_gguf(tmp_path / "model.gguf", "qwen2", extra_metadata=extra)
    with pytest.raises(ConfigError, match=words):
        from_pretrained(file)


def test_tensor_problems_are_listed(tmp_path: Path) -> None:
    extra = {"blk.0.ffn_gate_exps.weight": np.ones((4, 32), np.float32)}
    file = write_gguf(tmp_path / "model.gguf", "qwen2", extra_metadata={"block_count": 3}, extra_tensors=extra)
    with pytest.raises(CheckpointError, match="unexpected blk.0.ffn_gate_exps.weight") as caught:
        from_pretrained(file)
    assert "missing    model.layers.2.self_attn.q_proj.weight" in str(caught.value)


def test_rows_that_are_no_heads(tmp_path: Path) -> None:
    heads = {"attention.head_count": 3, "attention.head_count_kv": 3}
    file = write_gguf(tmp_path / "model.gguf", "llama_tied", extra_metadata=heads)
    with pytest.raises(CheckpointError, match="rows, which are not 3 heads of even size"):
        open_gguf(file).source.read("model.layers.0.self_attn.q_proj.weight")


def test_one_of_several_parts(tmp_path: Path) -> None:
    file = write_gguf(tmp_path / "model-00001-of-00003.gguf", "llama_tied", extra_metadata={"split.count": 3})
    with pytest.raises(CheckpointError, match="is one of 3 parts of a model. Merge them"):
        from_pretrained(file)


def test_damaged_files(tmp_path: Path) -> None:
    content = write_gguf(tmp_path / "model.gguf", "qwen2").read_bytes()
    for name, damaged in {
        "empty": b"",
        "other": b"not a GGUF file at all",
        "header": content[:40],
        "metadata": content[:300],
        "tensors": content[:-400],
        "count": content[:8] + b"\xff" * 16 + content[24:],
    }.items():
        (tmp_path / f"{name}.gguf").write_bytes(damaged)
        with pytest.raises(CheckpointError, match=f"{name}.gguf cannot be read as GGUF"):
            from_pretrained(tmp_path / f"{name}.gguf")
