"""What every family computes beyond plain logits: modes of its heads, greedy tokens with a cache, the engine."""

from __future__ import annotations

import dataclasses
from functools import cache
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import random_ids, tiny_model

from elastic_jax.config import HeadMode, RouterConfig
from elastic_jax.config.families import FAMILIES
from elastic_jax.engine import Engine, EngineConfig
from elastic_jax.generation import generate, make_cache, prefill, read_tokens
from elastic_jax.kv_cache import CacheConfig
from elastic_jax.model import ElasticForCausalLM, Output, from_params, to_params
from elastic_jax.program import model_program
from elastic_jax.weights import from_pretrained

GOLDEN = Path(__file__).parents[1] / "golden"
NAMES = sorted(path.parent.name for path in GOLDEN.glob("*/golden.npz") if "greedy" in np.load(path))
every_family = pytest.mark.parametrize("name", NAMES)


@cache
def golden_model(name: str) -> tuple[ElasticForCausalLM, dict[str, np.ndarray]]:
    """A golden model whose sparse heads see 1 sink and 2 local blocks, and what PyTorch computes with it."""
    model = from_pretrained(GOLDEN / name, dtype="float32")
    config = dataclasses.replace(model.config, router=RouterConfig(sink_blocks=1, local_blocks=2))
    return from_params(config, to_params(model)), dict(np.load(GOLDEN / name / "golden.npz"))


@model_program
def forward(model: ElasticForCausalLM, ids_BT, modes_LBK) -> Output:
    return model(ids_BT, routing=modes_LBK)


def test_every_family_has_a_golden_model():
    told = {golden_model(name)[0].config.family for name in NAMES}
    assert told | {"mistral", "qwen2", "qwen3"} == set(FAMILIES)


@every_family
def test_random_modes_are_those_of_dense_masks(name: str):
    model, golden = golden_model(name)
    modes = np.where(golden["full"], HeadMode.FULL, HeadMode.SPARSE).astype(np.int8)[:, None]
    out = forward(model, jnp.asarray(golden["input_ids"])[None], jnp.asarray(modes))
    logits = np.asarray(out.logits)[0, golden["positions"]]
    np.testing.assert_allclose(logits, golden["logits_mixed"], atol=2e-4, rtol=0)
    if model.config.sliding_window is None:  # or sparse heads see nothing less
        assert np.abs(logits - golden["logits"]).max() > 1e-2, "the modes matter"


@every_family
def test_greedy_tokens_with_a_cache(name: str):
    model, golden = golden_model(name)
    ids, count = jnp.asarray(golden["input_ids"])[None], len(golden["greedy"])
    out = generate(model, ids, max_new_tokens=count, routing="full", stop_tokens=[])
    np.testing.assert_array_equal(np.asarray(out.tokens)[0], golden["greedy"])


@model_program
def read(model: ElasticForCausalLM, state, tokens_BT):
    return read_tokens(model, state, tokens_BT)[1]


@pytest.mark.parametrize("name", ["granite", "ministral3", "smollm3"])
def test_a_quantised_cache_errs_by_its_rounding(name: str):
    model, golden = golden_model(name)
    ids, lengths = jnp.asarray(golden["input_ids"])[None, :640], np.array([640])
    kv, _, routing = prefill(model, ids, jnp.asarray(lengths), model.resolved("full", 1)[1])
    logits = {}
    for bits in (16, 8, 4):
        state = make_cache(CacheConfig(bits=bits), model.config, kv, lengths, routing.mode, 16)
        logits[bits] = np.asarray(read(model, state, jnp.asarray(golden["input_ids"])[None, 640:648]))[0]
    errors = {bits: np.abs(logits[bits] - logits[16]).max() / logits[16].std() for bits in (8, 4)}
    assert 0 < errors[8] < 0.1 and 2 * errors[8] < errors[4] < 2, errors


def test_a_deeper_model_is_no_larger_a_program():
    """All layers run one body, with rope or without, so compilers see the same program for any depth."""

    def equations(layers: int) -> int:
        model = tiny_model(num_layers=layers, rope_layers=(True, False) * (layers // 2))
        program = jax.make_jaxpr(lambda ids: model.hidden(ids, gates="full").hidden_BTD)(random_ids((1, 32)))
        return str(program).count(" = ")

    assert equations(2) == equations(6)


@pytest.mark.parametrize("name", ["olmo2", "phi3_longrope", "smollm3"])
def test_the_engine_gives_the_same_tokens(name: str):
    model, golden = golden_model(name)
    engine = Engine(model, EngineConfig(slots=2, max_length=768, step_tokens=4), CacheConfig())
    prompt, count = golden["input_ids"].tolist(), len(golden["greedy"])
    asked = [engine.submit(prompt, max_new_tokens=count, routing="full", stop_tokens=[]) for _ in range(2)]
    for _ in engine.run():
        pass
    assert all(request.tokens == golden["greedy"].tolist() for request in asked)
