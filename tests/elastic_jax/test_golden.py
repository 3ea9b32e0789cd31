"""The models against PyTorch: logits and hidden states of every family, rope type and the released router format."""

from __future__ import annotations

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from elastic_jax.config import HeadMode
from elastic_jax.errors import CheckpointError
from elastic_jax.model import ElasticForCausalLM, Output
from elastic_jax.smollm2 import model_file
from elastic_jax.weights import from_pretrained
from elastic_jax.weights.tokenizer import load_tokenizer

GOLDEN = Path(__file__).parents[1] / "golden"
FAMILIES = sorted(path.parent.name for path in GOLDEN.glob("*/golden.npz") if path.parent.name != "official_qwen3")


@nnx.jit
def layers_and_logits(model: ElasticForCausalLM, ids: jax.Array) -> tuple[jax.Array, jax.Array]:
    out = model.hidden(ids, gates="full", return_layers=True)
    return out.layers, model.head(out.hidden_BTD)


@nnx.jit(static_argnames="routing")
def forward(model: ElasticForCausalLM, ids: jax.Array, routing: str | None) -> Output:
    return model(ids, routing=routing)


def close(got: object, want: np.ndarray, tolerance: float) -> None:
    np.testing.assert_allclose(np.asarray(got), want, atol=tolerance, rtol=0)


@pytest.mark.parametrize("name", FAMILIES)
def test_logits_and_hidden_states(name: str) -> None:
    golden = np.load(GOLDEN / name / "golden.npz")
    model = from_pretrained(GOLDEN / name, dtype="float32")
    layers, logits = layers_and_logits(model, jnp.asarray(golden["input_ids"])[None])
    at = golden.get("positions", np.arange(len(golden["input_ids"])))
    close(np.asarray(layers)[:, 0, at[::4]], golden["layers"], 2e-4)
    close(np.asarray(logits)[0, at], golden["logits"], 2e-4)


def test_official_checkpoint() -> None:
    golden = np.load(GOLDEN / "official_qwen3" / "golden.npz")
    model = from_pretrained(GOLDEN / "official_qwen3", dtype="float32")
    for name, routing in (("routed", None), ("full", "full"), ("sparse", "sparse")):
        out = forward(model, jnp.asarray(golden["input_ids"]), routing)
        close(out.routing.logits, golden[f"router_{name}"], 3e-4)
        close(out.logits[:, ::5], golden[f"logits_{name}"], 3e-4)
        if routing is None:
            full = golden["router_routed"][..., 1] > golden["router_routed"][..., 0]
            np.testing.assert_array_equal(np.asarray(out.routing.mode) == HeadMode.FULL, full)


def smollm2() -> Path:
    try:
        return model_file()
    except CheckpointError as error:
        pytest.skip(str(error))


@pytest.mark.slow
def test_smollm2_from_gguf() -> None:
    from elastic_jax.generation import generate

    file = smollm2()
    golden = np.load(GOLDEN / "smollm2.npz")
    model, tokenizer = from_pretrained(file, dtype="float32"), load_tokenizer(file)
    for i, prompt in enumerate(golden["prompts"]):
        ids = golden[f"input_ids_{i}"]
        assert tokenizer(str(prompt))["input_ids"] == ids.tolist()
        logits = np.asarray(forward(model, jnp.asarray(ids)[None], "full").logits[0], np.float64)
        close(logits[:, golden["vocabulary"]], golden[f"logits_{i}"], 2e-3)
        close(np.logaddexp.reduce(logits, axis=-1), golden[f"lse_{i}"], 2e-3)
        out = generate(model, jnp.asarray(ids)[None], max_new_tokens=32, routing="full", stop_tokens=[])
        np.testing.assert_array_equal(np.asarray(out.tokens[0]), golden[f"greedy_{i}"])
