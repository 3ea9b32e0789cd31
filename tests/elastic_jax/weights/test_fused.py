"""Projections that a family stores as one matrix: their parts, blocks of them, and matrices of another height."""

from pathlib import Path

import numpy as np
import pytest
from checkpoints import GOLDEN, copy_golden, edit_weights
from safetensors.numpy import load_file

from elastic_jax.errors import CheckpointError
from elastic_jax.weights import from_pretrained
from elastic_jax.weights.hf import open_directory

QKV = "model.layers.1.self_attn.qkv_proj.weight"


def test_parts_and_blocks_of_them_are_rows_of_the_whole() -> None:
    checkpoint = open_directory(GOLDEN / "phi3")
    whole = load_file(GOLDEN / "phi3" / "model.safetensors")[QKV]
    rows = checkpoint.config.num_heads * checkpoint.config.head_dim
    key = QKV.replace("qkv_proj", "k_proj")
    keys = checkpoint.source.read(key)
    np.testing.assert_array_equal(keys, whole[rows : rows + len(keys)])
    assert checkpoint.source.tensors[key].shape == keys.shape
    block = checkpoint.source.read(key, (slice(16, 32), slice(3, 9)))
    np.testing.assert_array_equal(block, keys[16:32, 3:9])
    assert QKV not in checkpoint.source.tensors


def test_a_matrix_of_another_height_is_named(tmp_path: Path) -> None:
    source = copy_golden("phi3", tmp_path)
    edit_weights(source, lambda tensors: tensors.update({QKV: tensors[QKV][:-1]}))
    with pytest.raises(CheckpointError, match="self_attn.q_proj.weight") as error:
        from_pretrained(source)
    assert f"unexpected {QKV}" in str(error.value)
