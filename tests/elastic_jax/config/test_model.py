"""ModelConfig against `config.json`: both rope layouts, every family, and refusal of whatever it cannot express."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from elastic_jax.config import ModelConfig, RopeConfig, RouterConfig
from elastic_jax.config.model import config_to_elastic
from elastic_jax.errors import ConfigError

GOLDEN = Path(__file__).parents[2] / "golden"
CONFIGS = sorted(path.parent.name for path in GOLDEN.glob("*/config.json"))

LLAMA = {
    "model_type": "llama",
    "vocab_size": 128,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-6,
    "hidden_act": "silu",
}
SCALINGS = {
    "linear": {"factor": 2.0},
    "dynamic": {"factor": 2.0},
    "llama3": {
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    },
    "yarn": {"factor": 4.0, "original_max_position_embeddings": 128, "beta_fast": 16.0, "attention_factor": 1.5},
    "longrope": {
        "short_factor": [1.0] * 8,
        "long_factor": [2.0] * 8,
        "original_max_position_embeddings": 64,
        "factor": 8.0,
    },
}


def golden_json(name: str) -> dict:
    return json.loads((GOLDEN / name / "config.json").read_text())


@pytest.mark.parametrize("kind", SCALINGS)
def test_both_rope_layouts_mean_the_same(kind: str) -> None:
    scaling = {"rope_type": kind, **SCALINGS[kind]}
    old = ModelConfig.from_hf(LLAMA | {"rope_theta": 5e5, "rope_scaling": scaling})
    new = ModelConfig.from_hf(LLAMA | {"rope_parameters": {"rope_theta": 5e5, **scaling}})
    oldest = ModelConfig.from_hf(LLAMA | {"rope_theta": 5e5, "rope_scaling": {"type": kind, **SCALINGS[kind]}})
    assert old == new == oldest
    assert (old.rope.type, old.rope.theta) == (kind, 5e5)
    assert ModelConfig.from_hf(old.to_hf()) == old


@pytest.mark.parametrize(
    ("scaling", "stated", "factor", "positions"),
    [
        ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128}, 128, 4.0, 512),
        ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128}, 512, 4.0, 512),
        ({"rope_type": "yarn", "factor": 4.0}, 128, 4.0, 512),
        ({"rope_type": "yarn", "factor": 1.0, "original_max_position_embeddings": 64}, 256, 1.0, 256),
        ({"rope_type": "yarn", "factor": None, "original_max_position_embeddings": 64}, 256, 4.0, 256),
        ({"type": "linear", "factor": 4.0}, 128, 4.0, 512),
        ({"type": "linear", "factor": 4.0, "original_max_position_embeddings": 128}, 512, 4.0, 512),
        ({"type": "dynamic", "factor": 4.0}, 128, 4.0, None),
        ({"rope_type": "longrope", **SCALINGS["longrope"], "factor": 1.0}, 256, 1.0, 256),
        ({"rope_type": "longrope", **SCALINGS["longrope"], "factor": None}, 256, 4.0, 256),
        ({"rope_type": "llama3", **SCALINGS["llama3"]}, 256, 8.0, 256),
    ],
)
def test_factors_are_taken_as_written_and_scaled_positions_are_there(
    scaling: dict, stated: int, factor: float, positions: int | None
) -> None:
    config = ModelConfig.from_hf(LLAMA | {"max_position_embeddings": stated, "rope_scaling": scaling})
    assert config.rope.extension(stated) == factor
    assert config.positions == positions
    assert ModelConfig.from_hf(config.to_hf()) == config


@pytest.mark.parametrize(("given", "read"), [("2", 2), ([2, "3"], [2, 3]), (None, None), (-1, -1)])
def test_token_ids_may_be_text(given: object, read: object) -> None:
    assert ModelConfig.from_hf(LLAMA | {"eos_token_id": given}).hf_extra["eos_token_id"] == read
    for bad in ("</s>", 2.5, True, {"id": 2}, [2, "x"], [2, None]):
        with pytest.raises(ConfigError, match="eos_token_id is .*; want a token id"):
            ModelConfig.from_hf(LLAMA | {"eos_token_id": bad})


def test_rope_stated_twice_must_agree() -> None:
    new = {"rope_parameters": {"rope_theta": 1e6, "rope_type": "default"}}
    assert ModelConfig.from_hf(LLAMA | new | {"rope_theta": 1e6, "rope_scaling": None}).rope.theta == 1e6
    with pytest.raises(ConfigError, match="twice and differently"):
        ModelConfig.from_hf(LLAMA | new | {"rope_theta": 1e4})


def test_rope_defaults() -> None:
    assert ModelConfig.from_hf(LLAMA).rope == RopeConfig()
    scaling = {"rope_type": "yarn", "factor": 4.0}
    assert ModelConfig.from_hf(LLAMA | {"rope_scaling": scaling}).rope.original_max_position == 512


@pytest.mark.parametrize(
    ("scaling", "words"),
    [
        ({"rope_type": "spiral", "factor": 2.0}, "'spiral'.*default, linear"),
        ({"rope_type": "llama3", "factor": 8.0}, "low_freq_factor, high_freq_factor"),
        ({"rope_type": "linear", "factor": 2.0, "mrope_section": [1, 2]}, "mrope_section"),
        (
            {"rope_type": "default", "partial_rotary_factor": 0.5},
            "partial_rotary_factor is 0.5; the whole head rotates in llama models",
        ),
        ({"rope_type": "longrope", "short_factor": [1.0], "long_factor": [1.0]}, "half of the channels that rotate: 8"),
        ({"rope_type": "linear", "factor": -1.0}, "factor is -1.0"),
    ],
)
def test_rope_that_is_not_understood_is_refused(scaling: dict, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        ModelConfig.from_hf(LLAMA | {"rope_scaling": scaling})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("hidden_act", "gelu"),
        ("attn_logit_softcapping", 50.0),
        ("final_logit_softcapping", 30.0),
        ("partial_rotary_factor", 0.25),
        ("quantization_config", {"quant_method": "gptq"}),
        ("embedding_multiplier", 12.0),
        ("sliding_window", 4096),
        ("rope_interleaved", True),
    ],
)
def test_fields_that_change_the_result_are_refused_by_name(name: str, value: object) -> None:
    with pytest.raises(ConfigError, match=name):
        ModelConfig.from_hf(LLAMA | {name: value})


def test_neutral_and_harmless_fields_are_accepted() -> None:
    raw = LLAMA | {"rope_interleaved": False, "embedding_multiplier": None, "use_cache": True, "eos_token_id": [2, 3]}
    config = ModelConfig.from_hf(raw)
    assert config == ModelConfig.from_hf(LLAMA)
    assert config.to_hf()["eos_token_id"] == [2, 3]


def test_every_missing_field_is_named() -> None:
    with pytest.raises(ConfigError, match="hidden_size, rms_norm_eps"):
        ModelConfig.from_hf({k: v for k, v in LLAMA.items() if k not in ("hidden_size", "rms_norm_eps")})
    with pytest.raises(ConfigError, match="'gpt_neox'.*llama, mistral"):
        ModelConfig.from_hf(LLAMA | {"model_type": "gpt_neox"})


def test_derived_sizes() -> None:
    config = ModelConfig.from_hf({k: v for k, v in LLAMA.items() if k != "num_key_value_heads"})
    assert (config.num_kv_heads, config.head_dim) == (4, 16)
    assert ModelConfig.from_hf(LLAMA | {"model_type": "qwen3", "num_key_value_heads": 2}).head_dim == 128
    assert ModelConfig.from_hf(LLAMA | {"head_dim": 32}).head_dim == 32
    with pytest.raises(ConfigError, match="4 query heads do not divide into 3"):
        ModelConfig.from_hf(LLAMA | {"num_key_value_heads": 3})


def test_families_differ_in_biases_and_norms() -> None:
    def traits(family: str, **fields: object) -> tuple[bool, bool, str | None]:
        config = ModelConfig.from_hf(LLAMA | {"model_type": family} | fields)
        return config.qkv_bias, config.o_bias, config.qk_norm

    assert traits("llama") == (False, False, None)
    assert traits("llama", attention_bias=True) == (True, True, None)
    assert traits("mistral") == (False, False, None)
    assert traits("qwen2") == (True, False, None)
    assert traits("qwen3") == (False, False, "head")
    assert traits("seed_oss") == (True, False, None)
    assert traits("internlm3", bias=True) == (False, True, None)
    assert traits("olmo2") == (False, False, "projection")


def test_sliding_window() -> None:
    def window(family: str, **fields: object) -> int | None:
        return ModelConfig.from_hf(LLAMA | {"model_type": family} | fields).sliding_window

    assert window("mistral", sliding_window=64) == 64
    assert window("mistral", sliding_window=None) is None
    assert window("mistral") == 4096, "what transformers assumes"
    assert window("qwen2", sliding_window=64, use_sliding_window=False) is None
    assert window("qwen2", sliding_window=64, use_sliding_window=True, max_window_layers=2) is None
    assert window("qwen2", sliding_window=64, use_sliding_window=True, max_window_layers=0) == 64
    with pytest.raises(ConfigError, match="different attention"):
        window("qwen2", sliding_window=64, use_sliding_window=True, max_window_layers=1)
    with pytest.raises(ConfigError, match="different attention"):
        window("qwen3", sliding_window=64, layer_types=["full_attention", "sliding_attention"])


@pytest.mark.parametrize(
    ("name", "value"), [("initializer_range", 2**63), ("initializer_range", -0.1), ("rms_norm_eps", 2)]
)
def test_numbers_that_cannot_be_meant_are_refused(name: str, value: float) -> None:
    with pytest.raises(ConfigError, match=f"{name} is {value}; want a number from 0 to 1"):
        ModelConfig.from_hf(LLAMA | {name: value})


def test_only_whole_numbers_are_bounded_by_32_bits() -> None:
    config = ModelConfig.from_hf(LLAMA | {"rope_theta": 10**10})
    assert config.rope.theta == 1e10
    with pytest.raises(ConfigError, match="vocab_size is 10000000000; want a whole number up to 2147483647"):
        dataclasses.replace(config, vocab_size=10**10)


@pytest.mark.parametrize("name", CONFIGS)
def test_round_trip(name: str) -> None:
    raw = golden_json(name)
    config = ModelConfig.from_hf(raw)
    written = config_to_elastic(config) if name == "official_qwen3" else config.to_hf()
    assert ModelConfig.from_hf(written) == config
    dropped = {"dtype", "transformers_version", "is_encoder_decoder"}
    for field in set(raw) - dropped - {"max_window_layers", "rope_parameters"}:
        assert written[field] == raw[field], field


@pytest.mark.parametrize("name", CONFIGS)
def test_transformers_reads_the_written_config_alike(name: str) -> None:
    from transformers import AutoConfig

    raw = golden_json(name)
    ours = AutoConfig.for_model(**ModelConfig.from_hf(raw).to_hf()).to_dict()
    theirs = AutoConfig.for_model(**raw).to_dict()
    for field in ("rope_parameters", "head_dim", "num_key_value_heads", "tie_word_embeddings", "rms_norm_eps"):
        assert ours.get(field) == theirs.get(field), field
    assert ours.get("sliding_window") == theirs.get("sliding_window")


def test_official_router_fields() -> None:
    raw = golden_json("official_qwen3")
    assert ModelConfig.from_hf(raw).router == RouterConfig(sink_blocks=1, local_blocks=2)
    xattn = ModelConfig.from_hf(raw | {"toggle_type": "xattn", "local_window_size": 2048, "block_size": 64})
    assert xattn.router == RouterConfig(pattern="fa-xa", sink_blocks=1, local_blocks=16)
    for field, value in (("use_softmax", False), ("pooling_mode", "first_token"), ("toggle_type", "full")):
        with pytest.raises(ConfigError, match=field):
            ModelConfig.from_hf(raw | {field: value})


def test_router_settings_beyond_the_official_fields_survive() -> None:
    router = RouterConfig(pooling="prompt", pool_window=20, width=2, block_size=16, sink_blocks=1, local_blocks=2)
    config = dataclasses.replace(ModelConfig.from_hf(LLAMA), router=router)
    assert ModelConfig.from_hf(config_to_elastic(config)).router == router


def test_a_model_that_its_family_cannot_state_is_not_written() -> None:
    config = dataclasses.replace(ModelConfig.from_hf(LLAMA), sliding_window=64)
    with pytest.raises(ConfigError, match="sliding_window=64"):
        config.to_hf()


@pytest.mark.parametrize(
    "make",
    [
        lambda: RouterConfig(pooling="mean"),
        lambda: RouterConfig(local_blocks=0),
        lambda: RopeConfig(type="llama3", low_freq_factor=4.0, high_freq_factor=1.0),
        lambda: ModelConfig.from_hf(LLAMA | {"num_hidden_layers": 0}),
    ],
)
def test_values_out_of_range(make) -> None:
    with pytest.raises(ConfigError):
        make()
