"""Calibrated heads and the model that they belong to."""

import jax
import jax.numpy as jnp
import pytest
from checkpoints import GOLDEN

from elastic_jax.int8_linear import quantize_layers
from elastic_jax.sharding import MeshConfig, make_mesh
from elastic_jax.weights import from_pretrained
from elastic_jax.weights.heads import heads_fingerprint


def test_a_model_has_one_fingerprint_in_every_dtype_that_keeps_bfloat16():
    source = GOLDEN / "qwen3_tied"
    model = from_pretrained(source)
    digest = heads_fingerprint(model)
    assert digest == heads_fingerprint(from_pretrained(source, dtype="float32"))
    mesh = make_mesh(MeshConfig(), devices=jax.devices()[:1])
    assert digest == heads_fingerprint(from_pretrained(source, mesh=mesh))
    assert digest != heads_fingerprint(from_pretrained(GOLDEN / "llama3"))
    kernel = model.layers.attn.k_proj.kernel
    kernel[...] = kernel[...].at[-1, 0, 0, 0].add(jnp.asarray(1.0, kernel.dtype))
    assert digest != heads_fingerprint(model)


@pytest.mark.parametrize("dtype", ["float16", "int8"])
def test_values_that_are_rounded_otherwise_have_no_fingerprint(dtype):
    model = from_pretrained(GOLDEN / "llama3", dtype="float16" if dtype == "float16" else "bfloat16")
    if dtype == "int8":
        quantize_layers(model)
    assert heads_fingerprint(model) is None
