"""The table of families: defaults of transformers, what each family refuses, what is named as the nearest known."""

from __future__ import annotations

import pytest

from elastic_jax.config import ModelConfig
from elastic_jax.config.families import FAMILIES, SIZES
from elastic_jax.errors import ConfigError

SMALL = {
    "vocab_size": 200_000,
    "hidden_size": 256,
    "intermediate_size": 96,
    "num_hidden_layers": 8,
    "num_attention_heads": 64,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-6,
}
"""Divisible by the key/value heads that families assume."""


def config(family: str, **fields: object) -> ModelConfig:
    return ModelConfig.from_hf(SMALL | {"model_type": family} | fields)


@pytest.mark.parametrize("family", FAMILIES)
def test_absent_fields_mean_what_transformers_assumes(family: str) -> None:
    from transformers import AutoConfig

    stated = AutoConfig.for_model(family, **SMALL).to_dict()
    assert ModelConfig.from_hf(stated) == config(family)


@pytest.mark.parametrize("family", FAMILIES)
def test_what_a_family_fixes_and_reads_are_fields_of_the_model(family: str) -> None:
    traits = FAMILIES[family]
    read = [ours for several in traits.fields.values() for ours in several]
    assert {*traits.fixed, *read, *SIZES.values()} <= set(ModelConfig.__dataclass_fields__)


def test_multipliers() -> None:
    model = config("granite", embedding_multiplier=12, residual_multiplier=0.22, logits_scaling=8)
    assert (model.embedding_multiplier, model.residual_multiplier, model.logits_divisor) == (12, 0.22, 8)
    assert model.attention_spec.scale == 1.0, "what transformers assumes"
    assert config("granite", attention_multiplier=0.25).attention_spec.scale == 0.25
    with pytest.raises(ConfigError, match="residual_multiplier is 0; want a number above 0"):
        config("granite", residual_multiplier=0)


def test_layers_without_rope() -> None:
    assert config("smollm3").rope_layers == (True, True, True, False) * 2
    assert config("smollm3", no_rope_layers=[0, 1] * 6).rope_layers == (False, True) * 4, "the first of 8 layers count"
    assert config("smollm3", no_rope_layers=[1] * 8).rope_layers is None
    assert config("smollm3", no_rope_layer_interval=2).rope_layers == (True, False) * 4
    for wrong in ([1, 0], [1, 2] * 4, "all", [None] * 8):
        with pytest.raises(ConfigError, match="no_rope_layers is .*; want a list"):
            config("smollm3", no_rope_layers=wrong)
    with pytest.raises(ConfigError, match="no_rope_layer_interval is 0"):
        config("smollm3", no_rope_layer_interval=0)
    with pytest.raises(ConfigError, match="different attention"):
        config("smollm3", use_sliding_window=True, sliding_window=64)
    with pytest.raises(ConfigError, match="no_rope_layers"):
        config("llama", no_rope_layers=[1] * 8)


@pytest.mark.parametrize(
    ("family", "fields", "words"),
    [
        ("phi3", {"rope_scaling": {"type": "yarn", "factor": 2.0}}, "rope type yarn; want one of .*longrope"),
        (
            "mistral",
            {"rope_parameters": {"llama_4_scaling_beta": 0.1, "rope_type": "yarn", "factor": 2.0}},
            "do not scale",
        ),
        ("ministral3", {"rope_parameters": {"llama_4_scaling_beta": 0.1}}, "needs original_max_position_embeddings"),
        ("phi3", {"partial_rotary_factor": 1.5}, "partial_rotary_factor. is 1.5; want above 0, at most 1"),
        ("phi3", {"partial_rotary_factor": 0.25}, "of which 1 channels rotate"),
        ("arcee", {"hidden_act": "silu"}, "hidden_act='silu'; this library computes hidden_act='relu2'"),
        ("internlm3", {"bias": True, "mlp_bias": False}, "states o_bias twice and differently"),
        ("olmo2", {"clip_qkv": 8.0}, "clip_qkv=8.0"),
        ("granite", {"residual_multiplyer": 0.5}, "residual_multiplyer=0.5 .nearest known: residual_multiplier"),
        ("olmo3", {}, "'olmo3'.*nearest known: olmo2"),
    ],
)
def test_what_a_family_cannot_mean_is_refused(family: str, fields: dict, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        config(family, **fields)


def test_the_first_name_of_longrope() -> None:
    scaling = {"type": "su", "short_factor": [1.0] * 2, "long_factor": [2.0] * 2}
    rope = config("phi3", rope_scaling=scaling, original_max_position_embeddings=128).rope
    assert (rope.type, rope.original_max_position, rope.extension(512)) == ("longrope", 128, 4.0)
    assert config("phi3", rope_scaling=scaling).rope.original_max_position == 4096, "what transformers assumes"
