"""The configuration of one decoder: frozen and validated.

ModelConfig from and to the `config.json` of Hugging Face checkpoints.

A field that changes the mathematics and is not understood would give wrong numbers without an error, so every
field is either read, known to be harmless, neutral (null, false, empty), or refused by name.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from elastic_jax.config.checks import LARGEST, MOST_LAYERS, check_count, check_fields, check_positive
from elastic_jax.config.rope import RopeConfig, rope_from_hf, rope_to_hf
from elastic_jax.config.router import HARMLESS as HARMLESS_ROUTER_FIELDS
from elastic_jax.config.router import RouterConfig, is_elastic, router_from_hf, router_to_hf
from elastic_jax.errors import ConfigError, shown

if TYPE_CHECKING:
    from pallas_kernels.schedule import AttentionSpec

Family = Literal["llama", "mistral", "qwen2", "qwen3"]


@dataclass(frozen=True)
class ModelConfig:
    """Architecture of one decoder, in our own vocabulary."""

    family: Family
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    max_position_embeddings: int
    rms_norm_eps: float = 1e-5
    rope: RopeConfig = field(default_factory=RopeConfig)
    tie_word_embeddings: bool = False
    qkv_bias: bool = False
    o_bias: bool = False
    qk_norm: bool = False
    """Per-head RMSNorm on queries and keys before RoPE (Qwen3)."""
    sliding_window: int | None = None
    """Every head of every layer sees only the last `sliding_window` tokens; None for no limit."""
    initializer_range: float = 0.02
    router: RouterConfig = field(default_factory=RouterConfig)
    hf_extra: dict = field(default_factory=dict, compare=False, hash=False)
    """Harmless fields of the source `config.json` (token ids, architectures, ...), written back on export."""

    def __post_init__(self) -> None:
        check_fields("model", self)
        check_count("model num_layers", self.num_layers, MOST_LAYERS)
        check_positive(
            "model",
            vocab_size=self.vocab_size,
            hidden_size=self.hidden_size,
            intermediate_size=self.intermediate_size,
            num_heads=self.num_heads,
            num_kv_heads=self.num_kv_heads,
            head_dim=self.head_dim,
            max_position_embeddings=self.max_position_embeddings,
            rms_norm_eps=self.rms_norm_eps,
        )
        if self.sliding_window is not None:
            check_positive("model", sliding_window=self.sliding_window)
        if self.num_heads % self.num_kv_heads:
            raise ConfigError(
                f"{self.num_heads} query heads do not divide into {self.num_kv_heads} key/value heads. "
                "Check num_attention_heads and num_key_value_heads."
            )
        for name in ("rms_norm_eps", "initializer_range"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"model {name} is {shown(getattr(self, name))}; want a number from 0 to 1.")
        if self.head_dim % 2:
            raise ConfigError(f"head_dim is {self.head_dim}; rotary embedding needs an even number.")
        for name in ("short_factor", "long_factor"):
            factors = getattr(self.rope, name)
            if factors is not None and len(factors) != self.head_dim // 2:
                raise ConfigError(f"rope {name} has {len(factors)} numbers; want head_dim / 2 = {self.head_dim // 2}.")

    @property
    def positions(self) -> int | None:
        """Most tokens that a sequence may have; None where nothing bounds it (rope type dynamic).

        Checkpoints with a linear or yarn scaling state their positions before or after it in
        `max_position_embeddings`; either way the factor applies to those of pretraining.
        """
        rope, stated = self.rope, self.max_position_embeddings
        if rope.type == "dynamic":
            return None
        if rope.type in ("linear", "yarn"):
            return max(stated, int(rope.extension(stated) * (rope.original_max_position or stated)))
        return stated

    @property
    def attention_spec(self) -> AttentionSpec:
        """What the heads of this model see: the sparse pattern, the sliding window and the scale of the scores."""
        from pallas_kernels.schedule import AttentionSpec

        router = self.router
        return AttentionSpec(
            router.sink_blocks, router.local_blocks, router.block_size, self.sliding_window, self.head_dim**-0.5
        )

    @classmethod
    def from_hf(cls, raw: Mapping[str, Any]) -> ModelConfig:
        """Reads the content of a Hugging Face `config.json`, of a plain or an Elastic Attention checkpoint.

        Raises:
            ConfigError: a family, value or field that this library cannot reproduce, by name.
        """
        return config_from_hf(raw)

    def to_hf(self) -> dict[str, Any]:
        """The content of an equivalent `config.json` of the backbone; `from_hf` reads it back (router fields aside)."""
        return config_to_hf(self)


ARCHITECTURES: dict[Family, str] = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}

_REQUIRED = {
    "vocab_size": "vocab_size",
    "hidden_size": "hidden_size",
    "intermediate_size": "intermediate_size",
    "num_hidden_layers": "num_layers",
    "num_attention_heads": "num_heads",
    "max_position_embeddings": "max_position_embeddings",
    "rms_norm_eps": "rms_norm_eps",
}

# What transformers assumes where a field is absent (an explicit null means "derive it").
_ABSENT: dict[Family, dict[str, Any]] = {
    "llama": {},
    "mistral": {"num_key_value_heads": 8, "sliding_window": 4096},
    "qwen2": {"num_key_value_heads": 32, "sliding_window": 4096},
    "qwen3": {"num_key_value_heads": 32, "sliding_window": 4096, "head_dim": 128},
}

_MUST_BE: dict[str, Any] = {
    "hidden_act": "silu",
    "mlp_bias": False,
    "attn_logit_softcapping": None,
    "final_logit_softcapping": None,
    "quantization_config": None,
    "is_encoder_decoder": False,
    "add_cross_attention": False,
}

_HARMLESS = HARMLESS_ROUTER_FIELDS | frozenset(
    """_attn_implementation _attn_implementation_autoset _commit_hash _name_or_path architectures attention_dropout
    attn_implementation auto_map bad_words_ids begin_suppress_tokens bos_token_id chunk_size_feed_forward
    cls_token_id decoder_start_token_id diversity_penalty do_sample dtype early_stopping embd_pdrop
    encoder_no_repeat_ngram_size eos_token_id exponential_decay_length_penalty finetuning_task
    forced_bos_token_id forced_eos_token_id hidden_dropout id2label is_decoder is_llama_config label2id
    length_penalty mask_token_id max_length max_sequence_length min_length model_max_length no_repeat_ngram_size
    num_beam_groups num_beams num_labels num_return_sequences output_attentions output_hidden_states
    output_scores pad_token_id prefix pretraining_tp problem_type remove_invalid_values repetition_penalty
    resid_pdrop return_dict return_dict_in_generate sep_token_id suppress_tokens task_specific_params
    temperature tf_legacy_loss tie_encoder_decoder tokenizer_class top_k top_p torch_dtype torchscript
    transformers.js_config transformers_version typical_p unk_token_id unsloth_fixed unsloth_version
    use_bfloat16 use_cache use_return_dict""".split()
)
_NOT_WRITTEN_BACK = HARMLESS_ROUTER_FIELDS | {
    "architectures",
    "auto_map",
    "dtype",
    "torch_dtype",
    "transformers_version",
}


def config_from_hf(raw: Mapping[str, Any]) -> ModelConfig:
    """See `ModelConfig.from_hf`."""
    fields = dict(raw)
    family = fields.pop("model_type", None)
    if not isinstance(family, str) or family not in ARCHITECTURES:
        raise ConfigError(f"config.json has model_type {family!r}; supported: {', '.join(ARCHITECTURES)}.")
    missing = [name for name in _REQUIRED if fields.get(name) is None]
    if missing:
        raise ConfigError(f"config.json of this {family} model lacks {', '.join(missing)}.")
    for theirs, ours in _REQUIRED.items():
        if ours != "rms_norm_eps":
            check_count(f"config.json {theirs}", fields[theirs], MOST_LAYERS if ours == "num_layers" else LARGEST)
    for name, want in _MUST_BE.items():
        got = fields.pop(name, want)
        if got != want and not (want is False and got is None):
            raise ConfigError(f"config.json has {name}={got!r}; this library computes {name}={want!r} only.")
    for name, value in _ABSENT[family].items():
        fields.setdefault(name, value)

    sizes = {ours: fields.pop(theirs) for theirs, ours in _REQUIRED.items()}
    num_kv_heads = fields.pop("num_key_value_heads", None)
    head_dim = fields.pop("head_dim", None)
    if head_dim is None and sizes["hidden_size"] % sizes["num_heads"]:
        raise ConfigError(
            f"config.json has no head_dim, and hidden_size {sizes['hidden_size']} does not divide into "
            f"{sizes['num_heads']} heads."
        )
    bias = bool(fields.pop("attention_bias", False)) if family != "mistral" else False
    window = _sliding_window(family, fields, sizes["num_layers"])
    rope = rope_from_hf(fields, sizes["max_position_embeddings"])
    router = router_from_hf(fields) if is_elastic(fields) else RouterConfig()
    tied = bool(fields.pop("tie_word_embeddings", False))
    initializer_range = fields.pop("initializer_range", 0.02)
    refused = {
        name: value
        for name, value in fields.items()
        if name not in _HARMLESS and not (value is None or value is False or value in ({}, []))
    }
    if refused:
        listed = ", ".join(f"{name}={value!r}" for name, value in sorted(refused.items()))
        raise ConfigError(
            f"config.json of this {family} model has fields that are not understood and may change the result: "
            f"{listed}. Remove a field only if you know that it has no effect."
        )
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        if name in fields:
            fields[name] = _token_id(name, fields[name])
    return ModelConfig(
        family=family,
        **sizes,
        num_kv_heads=sizes["num_heads"] if num_kv_heads is None else num_kv_heads,
        head_dim=sizes["hidden_size"] // sizes["num_heads"] if head_dim is None else head_dim,
        rope=rope,
        tie_word_embeddings=tied,
        qkv_bias=bias or family == "qwen2",
        o_bias=bias and family != "qwen2",
        qk_norm=family == "qwen3",
        sliding_window=window,
        initializer_range=initializer_range,
        router=router,
        hf_extra={name: value for name, value in fields.items() if name in _HARMLESS},
    )


def _token_id(name: str, given: Any) -> Any:
    """A token id, a list of them or None, as whole numbers; some files write them as text."""
    if isinstance(given, list) and None not in given and name == "eos_token_id":
        return [_token_id(name, one) for one in given]
    number = int(given) if isinstance(given, str) and given.strip().lstrip("-").isdecimal() else given
    if number is not None and (isinstance(number, bool) or not isinstance(number, int)):
        raise ConfigError(
            f"config.json {name} is {shown(given)}; want a token id, a whole number. Write the id of that token."
        )
    return number


def config_to_hf(config: ModelConfig) -> dict[str, Any]:
    """See `ModelConfig.to_hf`."""
    layers = config.num_layers
    out: dict[str, Any] = {name: v for name, v in config.hf_extra.items() if name not in _NOT_WRITTEN_BACK}
    out |= {"architectures": [ARCHITECTURES[config.family]], "model_type": config.family}
    out |= {theirs: getattr(config, ours) for theirs, ours in _REQUIRED.items()}
    out |= {
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "hidden_act": "silu",
        "initializer_range": config.initializer_range,
        "tie_word_embeddings": config.tie_word_embeddings,
        **rope_to_hf(config.rope),
    }
    if config.family == "llama":
        out |= {"attention_bias": config.qkv_bias, "mlp_bias": False}
    if config.family == "qwen3":
        out |= {"attention_bias": config.qkv_bias}
    if config.family == "mistral":
        out |= {"sliding_window": config.sliding_window}
    if config.family in ("qwen2", "qwen3"):
        sliding = config.sliding_window is not None
        out |= {
            "use_sliding_window": sliding,
            "sliding_window": config.sliding_window,
            "max_window_layers": 0 if sliding else layers,
            "layer_types": ["sliding_attention" if sliding else "full_attention"] * layers,
        }
    _check_expressible(config, out)
    return out


def config_to_elastic(config: ModelConfig) -> dict[str, Any]:
    """`config.json` of an Elastic Attention checkpoint: the backbone's fields and the official router fields."""
    kept = {name: value for name, value in config.hf_extra.items() if name in HARMLESS_ROUTER_FIELDS}
    architecture = f"Paw{ARCHITECTURES[config.family]}"
    return config_to_hf(config) | router_to_hf(config.router) | kept | {"architectures": [architecture]}


def _sliding_window(family: Family, fields: dict[str, Any], num_layers: int) -> int | None:
    """Window of every layer, or None; a window over only some layers is refused."""
    window, first = None, 0
    if family != "llama":
        window = fields.pop("sliding_window")
    if family in ("qwen2", "qwen3"):
        first = fields.pop("max_window_layers", 28)
        window = window if fields.pop("use_sliding_window", False) else None
    if isinstance(first, bool) or not isinstance(first, int):
        raise ConfigError(f"config.json max_window_layers is {shown(first)}; want a whole number.")
    kinds = ["sliding_attention" if window and i >= first else "full_attention" for i in range(num_layers)]
    kinds = fields.pop("layer_types", None) or kinds
    if not isinstance(kinds, list) or not all(isinstance(kind, str) for kind in kinds):
        raise ConfigError(f"config.json layer_types is {shown(kinds)}; want a list of names.")
    if set(kinds) == {"full_attention"}:
        return None
    if set(kinds) == {"sliding_attention"} and window:
        return window
    raise ConfigError(
        f"config.json gives layers different attention (layer_types {sorted(set(kinds))}, sliding_window {window}, "
        f"max_window_layers); only one kind for all {num_layers} layers is supported."
    )


def _check_expressible(config: ModelConfig, out: dict[str, Any]) -> None:
    back = dataclasses.replace(config_from_hf(out), router=config.router)
    if back == config:
        return
    differ = [
        f"{f.name}={getattr(config, f.name)!r}"
        for f in dataclasses.fields(config)
        if getattr(back, f.name) != getattr(config, f.name)
    ]
    raise ConfigError(f"a {config.family} config.json cannot express {', '.join(differ)}.")
