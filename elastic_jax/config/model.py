"""The configuration of one decoder: frozen and validated.

ModelConfig from and to the `config.json` of Hugging Face checkpoints.

A field that changes the mathematics and is not understood would give wrong numbers without an error, so every
field is either read, known to be harmless, neutral (null, false, empty), or refused by name.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, Literal

from elastic_jax.config.checks import LARGEST, MOST_LAYERS, check_count, check_fields, check_positive
from elastic_jax.config.families import (
    FAMILIES,
    HARMLESS,
    MUST_BE,
    NOT_WRITTEN_BACK,
    SIZES,
    Family,
    FamilyTraits,
)
from elastic_jax.config.rope import RopeConfig, rope_from_hf, rope_to_hf
from elastic_jax.config.router import HARMLESS as HARMLESS_ROUTER_FIELDS
from elastic_jax.config.router import RouterConfig, is_elastic, router_from_hf, router_to_hf
from elastic_jax.errors import ConfigError, shown

if TYPE_CHECKING:
    from pallas_kernels.schedule import AttentionSpec


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
    qk_norm: Literal["head", "projection"] | None = None
    """RMSNorm on queries and keys before RoPE: over each head (Qwen3) or over all heads together (OLMo 2)."""
    norms: Literal["before", "after"] = "before"
    """Whether attention and MLP have their norm before them or after them (OLMo 2)."""
    gated_mlp: bool = True
    """`down(activation(gate(x)) * up(x))`; otherwise `down(activation(up(x)))`."""
    activation: Literal["silu", "relu2"] = "silu"
    mlp_bias: bool = False
    embedding_multiplier: float = 1.0
    """Scale of the token embeddings."""
    residual_multiplier: float = 1.0
    """Scale of what attention and MLP add to the residual stream."""
    attention_scale: float | None = None
    """Scale of the attention scores; None for 1 / sqrt(head_dim)."""
    logits_divisor: float = 1.0
    """The vocabulary logits are divided by it."""
    rope_layers: tuple[bool, ...] | None = None
    """Whether each layer rotates queries and keys; None where all do. The others know no positions (SmolLM3)."""
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
            embedding_multiplier=self.embedding_multiplier,
            residual_multiplier=self.residual_multiplier,
            logits_divisor=self.logits_divisor,
        )
        if self.attention_scale is not None:
            check_positive("model", attention_scale=self.attention_scale)
        if self.rope_layers is not None and len(self.rope_layers) != self.num_layers:
            raise ConfigError(
                f"rope_layers has {len(self.rope_layers)} values; want one for each of {self.num_layers} layers."
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
        if self.head_dim % 2 or self.rotary_dim % 2 or not self.rotary_dim:
            raise ConfigError(
                f"head_dim is {self.head_dim}, of which {self.rotary_dim} channels rotate; rotary embedding needs even "
                "numbers above 0."
            )
        for name in ("short_factor", "long_factor"):
            factors = getattr(self.rope, name)
            if factors is not None and len(factors) != self.rotary_dim // 2:
                raise ConfigError(
                    f"rope {name} has {len(factors)} numbers; want half of the channels that rotate: "
                    f"{self.rotary_dim // 2}."
                )

    @property
    def rotary_dim(self) -> int:
        """Channels of a head that rotate, the first ones."""
        return int(self.head_dim * self.rope.fraction)

    @property
    def map_weights(self) -> int:
        """Weights of the linear maps of all layers, without biases."""
        attention = 2 * self.hidden_size * self.head_dim * (self.num_heads + self.num_kv_heads)
        return self.num_layers * (attention + (3 if self.gated_mlp else 2) * self.hidden_size * self.intermediate_size)

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
        scale = self.head_dim**-0.5 if self.attention_scale is None else self.attention_scale
        return AttentionSpec(router.sink_blocks, router.local_blocks, router.block_size, self.sliding_window, scale)

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


def config_from_hf(raw: Mapping[str, Any]) -> ModelConfig:
    """See `ModelConfig.from_hf`."""
    fields = dict(raw)
    family = fields.pop("model_type", None)
    if not isinstance(family, str) or family not in FAMILIES:
        raise ConfigError(
            f"config.json has model_type {family!r}; supported: {', '.join(FAMILIES)}{_nearest(family, FAMILIES)}."
        )
    traits = FAMILIES[family]
    missing = [name for name in SIZES if fields.get(name) is None]
    if missing:
        raise ConfigError(f"config.json of this {family} model lacks {', '.join(missing)}.")
    for theirs, ours in SIZES.items():
        if ours != "rms_norm_eps":
            check_count(f"config.json {theirs}", fields[theirs], MOST_LAYERS if ours == "num_layers" else LARGEST)
    for name, want in {**MUST_BE, "hidden_act": traits.activation}.items():
        got = fields.pop(name, want)
        if got != want and not (want is False and got is None):
            raise ConfigError(f"config.json has {name}={got!r}; this library computes {name}={want!r} only.")
    for name, value in traits.absent.items():
        stated = "rope" in name and any(fields.get(other) for other in ("rope_parameters", "rope_scaling"))
        if not stated:
            fields.setdefault(name, value)

    sizes = {ours: fields.pop(theirs) for theirs, ours in SIZES.items()}
    num_kv_heads = fields.pop("num_key_value_heads", None)
    head_dim = fields.pop("head_dim", None)
    if head_dim is None and sizes["hidden_size"] % sizes["num_heads"]:
        raise ConfigError(
            f"config.json has no head_dim, and hidden_size {sizes['hidden_size']} does not divide into "
            f"{sizes['num_heads']} heads."
        )
    differences = {**traits.fixed, **_own_fields(traits, fields)}
    kept = {name: fields.pop(name) for name in traits.ignored if name in fields}
    rope_layers = None
    if traits.rope_by_layer:
        rope_layers = _rope_layers(fields.pop("no_rope_layers", None), kept, sizes["num_layers"])
    window = _sliding_window(traits, fields, sizes["num_layers"], rope_layers)
    rope = rope_from_hf(fields, sizes["max_position_embeddings"])
    if rope.fraction != 1.0 and "partial_rotary_factor" not in traits.rope_fields:
        raise ConfigError(f"partial_rotary_factor is {rope.fraction}; the whole head rotates in {family} models.")
    if rope.query_scaling is not None and "llama_4_scaling_beta" not in traits.rope_fields:
        raise ConfigError(f"llama_4_scaling_beta is {rope.query_scaling}; {family} models do not scale their queries.")
    if rope.type not in traits.rope_types:
        raise ConfigError(
            f"config.json of this {family} model has rope type {rope.type}; want one of {traits.rope_types}."
        )
    router = router_from_hf(fields) if is_elastic(fields) else RouterConfig()
    tied = bool(fields.pop("tie_word_embeddings", False))
    initializer_range = fields.pop("initializer_range", 0.02)
    refused = {
        name: value
        for name, value in fields.items()
        if name not in HARMLESS and not (value is None or value is False or value in ({}, []))
    }
    if refused:
        known = [*SIZES, *traits.fields, *traits.window, "num_key_value_heads", "head_dim", "rope_parameters"]
        listed = ", ".join(f"{name}={value!r}{_nearest(name, known)}" for name, value in sorted(refused.items()))
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
        sliding_window=window,
        rope_layers=rope_layers,
        initializer_range=initializer_range,
        router=router,
        hf_extra=kept | {name: value for name, value in fields.items() if name in HARMLESS},
        **differences,
    )


def _nearest(name: object, known: Iterable[str]) -> str:
    close = get_close_matches(str(name), list(known), n=1)
    return f" (nearest known: {close[0]})" if close else ""


def _own_fields(traits: FamilyTraits, fields: dict[str, Any]) -> dict[str, Any]:
    """Takes the fields that the family has beside the common ones out of `fields`: fields of `ModelConfig`."""
    found: dict[str, Any] = {}
    for name, ours in traits.fields.items():
        value = fields.pop(name, None)
        if value is None:
            continue
        for one in ours:
            if found.setdefault(one, value) != value:
                raise ConfigError(
                    f"config.json states {one} twice and differently: {found[one]!r}, and {name}={value!r}."
                )
    return found


def _rope_layers(listed: Any, kept: Mapping[str, Any], num_layers: int) -> tuple[bool, ...] | None:
    """Whether each layer rotates, None where all do; `no_rope_layers` has 1 for a layer that does."""
    if listed is None:
        interval = kept.get("no_rope_layer_interval", 4)
        check_count("config.json no_rope_layer_interval", interval)
        listed = [int((layer + 1) % interval != 0) for layer in range(num_layers)]
    if not isinstance(listed, list) or len(listed) < num_layers or not all(value in (0, 1) for value in listed):
        raise ConfigError(
            f"config.json no_rope_layers is {shown(listed)}; want a list with 1 (rope) or 0 (none) for each of "
            f"{num_layers} layers."
        )
    rotates = tuple(bool(value) for value in listed[:num_layers])
    return None if all(rotates) else rotates


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
    traits, layers, window = FAMILIES[config.family], config.num_layers, config.sliding_window
    out: dict[str, Any] = {name: v for name, v in config.hf_extra.items() if name not in NOT_WRITTEN_BACK}
    out |= {"architectures": [traits.architecture], "model_type": config.family}
    out |= {theirs: getattr(config, ours) for theirs, ours in SIZES.items()}
    out |= {
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "hidden_act": config.activation,
        "initializer_range": config.initializer_range,
        "tie_word_embeddings": config.tie_word_embeddings,
        **rope_to_hf(config.rope),
    }
    if assumed := traits.absent.get("original_max_position_embeddings"):
        out["original_max_position_embeddings"] = config.rope.original_max_position or assumed
    out |= {name: getattr(config, ours[0]) for name, ours in traits.fields.items()}
    if traits.rope_by_layer:
        out["no_rope_layers"] = [int(rotates) for rotates in config.rope_layers or [True] * layers]
    stated = window
    if window is None and traits.window == ("sliding_window", "layer_types"):
        stated = config.max_position_embeddings  # transformers wants a window there, though no layer has it
    sliding = {
        "use_sliding_window": window is not None,
        "sliding_window": stated,
        "max_window_layers": layers if window is None else 0,
        "layer_types": ["full_attention" if window is None else "sliding_attention"] * layers,
    }
    out |= {name: sliding[name] for name in traits.window}
    _check_expressible(config, out)
    return out


def config_to_elastic(config: ModelConfig) -> dict[str, Any]:
    """`config.json` of an Elastic Attention checkpoint: the backbone's fields and the official router fields."""
    kept = {name: value for name, value in config.hf_extra.items() if name in HARMLESS_ROUTER_FIELDS}
    architecture = f"Paw{FAMILIES[config.family].architecture}"
    return config_to_hf(config) | router_to_hf(config.router) | kept | {"architectures": [architecture]}


def _sliding_window(
    traits: FamilyTraits, fields: dict[str, Any], num_layers: int, rope_layers: tuple[bool, ...] | None
) -> int | None:
    """Window of every layer, or None; a window over only some layers is refused."""
    window = fields.pop("sliding_window", None) if "sliding_window" in traits.window else None
    if "use_sliding_window" in traits.window and not fields.pop("use_sliding_window", False):
        window = None
    first = fields.pop("max_window_layers", 28) if "max_window_layers" in traits.window else 0
    if isinstance(first, bool) or not isinstance(first, int):
        raise ConfigError(f"config.json max_window_layers is {shown(first)}; want a whole number.")
    rotates = rope_layers or (traits.rope_by_layer,) * num_layers  # such a family has windows where it has no rope
    slides = [layer >= first and not rotates[layer] for layer in range(num_layers)]
    kinds = ["sliding_attention" if window and sliding else "full_attention" for sliding in slides]
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
