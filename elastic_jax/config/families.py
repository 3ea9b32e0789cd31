"""The model families: how each differs from Llama, as one table.

An entry says which fields of `config.json` become which fields of `ModelConfig`, what the family fixes, what
transformers assumes where a field is absent, and which projections a checkpoint stores as one matrix. A family has no
code of its own; what the decoder computes follows from `ModelConfig` alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from elastic_jax.config.rope import RopeType
from elastic_jax.config.router import HARMLESS as HARMLESS_ROUTER_FIELDS

Family = Literal[
    "llama",
    "mistral",
    "ministral",
    "ministral3",
    "qwen2",
    "qwen3",
    "arcee",
    "granite",
    "internlm3",
    "olmo2",
    "phi3",
    "seed_oss",
    "smollm3",
]


@dataclass(frozen=True)
class FamilyTraits:
    """What sets a family apart, by the `model_type` of its `config.json`."""

    models: str
    """Published models of the family, for the documentation."""
    architecture: str
    """Class of transformers, for `architectures`."""
    fields: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Fields of `config.json` that other families lack, and the fields of `ModelConfig` that each one sets."""
    fixed: Mapping[str, Any] = field(default_factory=dict)
    """Fields of `ModelConfig` that are the same for all models of the family."""
    absent: Mapping[str, Any] = field(default_factory=dict)
    """What transformers assumes where a field is absent (an explicit null means "derive it")."""
    ignored: tuple[str, ...] = ()
    """Fields that have no effect in this family once the others are read; they are written back."""
    window: tuple[str, ...] = ()
    """Fields that state a sliding window; without any, a family has none."""
    rope_types: tuple[RopeType, ...] = get_args(RopeType)
    rope_fields: tuple[str, ...] = ()
    """Rope settings that only some families obey: `partial_rotary_factor`, `llama_4_scaling_beta`."""
    rope_by_layer: bool = False
    """Whether `no_rope_layers` says which layers rotate."""
    classifier: bool = True
    """Whether transformers has a sequence classifier of the family, which an exported reward model is."""
    fused: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Matrices of a layer that checkpoints store as one, rows after rows: its name, and the names that others use."""

    @property
    def activation(self) -> str:
        """Name of the activation in `hidden_act`, the only one that the family has."""
        return self.fixed.get("activation", "silu")


_ATTENTION_BIAS = {"attention_bias": ("qkv_bias", "o_bias")}
_BIASES = _ATTENTION_BIAS | {"mlp_bias": ("mlp_bias",)}
_QWEN_WINDOW = ("sliding_window", "use_sliding_window", "max_window_layers", "layer_types")

FAMILIES: dict[Family, FamilyTraits] = {
    "llama": FamilyTraits("Llama 2 and 3, SmolLM, SmolLM2", "LlamaForCausalLM", fields=_BIASES),
    "mistral": FamilyTraits(
        "Mistral 7B, Nemo, Small",
        "MistralForCausalLM",
        absent={"num_key_value_heads": 8, "sliding_window": 4096},
        window=("sliding_window",),
    ),
    "ministral": FamilyTraits(
        "Ministral 8B",
        "MinistralForCausalLM",
        absent={"num_key_value_heads": 8, "sliding_window": 4096},
        window=("sliding_window", "layer_types"),
    ),
    "ministral3": FamilyTraits(
        "Ministral 3 (text)",
        "Ministral3ForCausalLM",
        absent={
            "num_key_value_heads": 8,
            "head_dim": 128,
            "rope_parameters": {
                "rope_type": "yarn",
                "rope_theta": 1_000_000.0,
                "factor": 16.0,
                "original_max_position_embeddings": 16384,
                "mscale": 1.0,
                "mscale_all_dim": 1.0,
                "llama_4_scaling_beta": 0.1,
            },
        },
        window=("sliding_window",),
        rope_fields=("llama_4_scaling_beta",),
    ),
    "qwen2": FamilyTraits(
        "Qwen2, Qwen2.5",
        "Qwen2ForCausalLM",
        fixed={"qkv_bias": True},
        absent={"num_key_value_heads": 32, "sliding_window": 4096},
        ignored=("attention_bias",),
        window=_QWEN_WINDOW,
    ),
    "qwen3": FamilyTraits(
        "Qwen3",
        "Qwen3ForCausalLM",
        fields=_ATTENTION_BIAS,
        fixed={"qk_norm": "head"},
        absent={"num_key_value_heads": 32, "sliding_window": 4096, "head_dim": 128},
        window=_QWEN_WINDOW,
    ),
    "arcee": FamilyTraits(
        "AFM 4.5B",
        "ArceeForCausalLM",
        fields=_BIASES,
        fixed={"activation": "relu2", "gated_mlp": False},
    ),
    "granite": FamilyTraits(
        "Granite 3",
        "GraniteForCausalLM",
        fields=_BIASES
        | {
            "embedding_multiplier": ("embedding_multiplier",),
            "residual_multiplier": ("residual_multiplier",),
            "attention_multiplier": ("attention_scale",),
            "logits_scaling": ("logits_divisor",),
        },
        absent={"attention_multiplier": 1.0},
        classifier=False,
    ),
    "internlm3": FamilyTraits(
        "InternLM3 8B",
        "InternLM3ForCausalLM",
        fields={
            "qkv_bias": ("qkv_bias",),
            "attention_bias": ("qkv_bias",),
            "bias": ("o_bias", "mlp_bias"),
            "mlp_bias": ("o_bias", "mlp_bias"),
        },
        absent={"num_key_value_heads": 2, "head_dim": 128},
        classifier=False,
    ),
    "olmo2": FamilyTraits(
        "OLMo 2",
        "Olmo2ForCausalLM",
        fields=_ATTENTION_BIAS,
        fixed={"norms": "after", "qk_norm": "projection"},
    ),
    "phi3": FamilyTraits(
        "Phi-3, Phi-3.5, Phi-4",
        "Phi3ForCausalLM",
        window=("sliding_window",),
        absent={"original_max_position_embeddings": 4096},
        rope_types=("default", "longrope"),
        rope_fields=("partial_rotary_factor",),
        fused={
            "self_attn.qkv_proj": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
            "mlp.gate_up_proj": ("mlp.gate_proj", "mlp.up_proj"),
        },
    ),
    "seed_oss": FamilyTraits(
        "Seed-OSS 36B",
        "SeedOssForCausalLM",
        fields={"attention_bias": ("qkv_bias",), "attention_out_bias": ("o_bias",), "mlp_bias": ("mlp_bias",)},
        absent={"num_key_value_heads": 8, "head_dim": 128, "attention_bias": True},
    ),
    "smollm3": FamilyTraits(
        "SmolLM3 3B",
        "SmolLM3ForCausalLM",
        fields=_BIASES,
        absent={"num_key_value_heads": 4, "tie_word_embeddings": True, "rope_theta": 2_000_000.0},
        ignored=("no_rope_layer_interval",),
        rope_by_layer=True,
        window=("sliding_window", "use_sliding_window", "layer_types"),
    ),
}

SIZES = {
    "vocab_size": "vocab_size",
    "hidden_size": "hidden_size",
    "intermediate_size": "intermediate_size",
    "num_hidden_layers": "num_layers",
    "num_attention_heads": "num_heads",
    "max_position_embeddings": "max_position_embeddings",
    "rms_norm_eps": "rms_norm_eps",
}
"""Fields that every `config.json` must have, and ours."""

MUST_BE: dict[str, Any] = {
    "attn_logit_softcapping": None,
    "final_logit_softcapping": None,
    "quantization_config": None,
    "is_encoder_decoder": False,
    "add_cross_attention": False,
}

HARMLESS = HARMLESS_ROUTER_FIELDS | frozenset(
    """_attn_implementation _attn_implementation_autoset _commit_hash _name_or_path architectures attention_dropout
    attn_implementation auto_map bad_words_ids begin_suppress_tokens bos_token_id chunk_size_feed_forward
    cls_token_id decoder_start_token_id diversity_penalty do_sample dtype early_stopping embd_pdrop
    encoder_no_repeat_ngram_size eos_token_id exponential_decay_length_penalty finetuning_task
    forced_bos_token_id forced_eos_token_id hidden_dropout id2label is_decoder is_llama_config label2id
    length_penalty mask_token_id max_length max_sequence_length min_length model_max_length no_repeat_ngram_size
    num_beam_groups num_beams num_labels num_return_sequences output_attentions output_hidden_states
    output_scores pad_token_id prefix pretraining_tp problem_type remove_invalid_values repetition_penalty
    resid_pdrop residual_dropout return_dict return_dict_in_generate sep_token_id suppress_tokens
    task_specific_params temperature tf_legacy_loss tie_encoder_decoder tokenizer_class top_k top_p torch_dtype
    torchscript transformers.js_config transformers_version typical_p unk_token_id unsloth_fixed unsloth_version
    use_bfloat16 use_cache use_return_dict""".split()
)
"""Fields that change nothing here; they are written back, except `NOT_WRITTEN_BACK`."""
NOT_WRITTEN_BACK = HARMLESS_ROUTER_FIELDS | {
    "architectures",
    "auto_map",
    "dtype",
    "torch_dtype",
    "transformers_version",
}
