"""Settings of the `bench` verbs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from elastic_jax import smollm2
from elastic_jax.cli.model import ModelSettings
from elastic_jax.errors import ConfigError
from elastic_jax.kv_cache.config import BITS, KEY_TRANSFORMS, KeyTransform
from elastic_jax.settings import FilePath, check_filled, check_least
from eval.harness.settings import refuse_doubles

LONGEST = 2**18


@dataclass(frozen=True)
class BenchKernelSettings:
    """What is timed, and against what."""

    model: Literal["smollm2-135m", "llama-3.1-8b", "qwen3-4b", "qwen3-8b"] | None = None
    """Whose attention heads; by default smollm2-135m on CPU and llama-3.1-8b elsewhere."""
    lengths: tuple[int, ...] = ()
    """Tokens of the sequences, up to 262,144; by default 2,048 and 4,096 on CPU, 4,096 to 65,536 elsewhere."""
    sparse: tuple[float, ...] = (0.0, 0.3, 0.7, 1.0)
    """Shares of the KV heads that are sparse (MSR), 0 to 1, rounded to whole heads; 0 is always measured."""
    ops: tuple[Literal["hybrid", "routed", "select_blocks"], ...] = ("hybrid", "routed", "select_blocks")
    """hybrid is always measured; routed is a training step, select_blocks has a forward pass only."""
    steps: tuple[Literal["forward", "training"], ...] = ("forward", "training")
    """training is forward and backward."""
    impls: tuple[Literal["auto", "reference", "xla", "tpu", "mosaic_gpu", "triton"], ...] = ("auto",)
    """Implementations of our ops; auto is what a user gets on this device."""
    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    """Type of the operands; by default float32 on CPU and bfloat16 elsewhere."""
    rounds: int = 5
    """Timed samples of each program; programs take turns and the fastest sample counts."""
    torch_python: FilePath | None = None
    """A Python that has torch, to time its attention on the same device: SDPA, and on a GPU FlexAttention."""
    out: FilePath | None = None
    """JSON file for the results."""
    plot: FilePath | None = None
    """Picture of the results; the ending names the format."""

    def __post_init__(self) -> None:
        refuse_doubles(self)
        if any(not 1 <= tokens <= LONGEST for tokens in self.lengths):
            raise ConfigError(f"lengths holds {self.lengths}; want 1 to {LONGEST:,} tokens.")
        if any(not 0 <= share <= 1 for share in self.sparse):
            raise ConfigError(f"sparse holds {self.sparse}; want shares between 0 and 1.")
        check_least(self, 1, "rounds")
        check_filled(self, "steps", "impls")


@dataclass(frozen=True)
class BenchAttentionSettings:
    """Shapes and repetitions; the sparse pattern is the published one, 128 sinks and 16 local blocks of 128."""

    query_heads: int = 9
    kv_heads: int = 3
    head_dim: int = 64
    dtype: Literal["float32", "bfloat16"] = "float32"
    tokens: int = 8192
    """Sequence length of full attention against torch, and of the training step."""
    sparse_tokens: int = 16384
    """Sequence length of the mixture: 10 KV heads, 7 of them sparse."""
    rounds: int = 5
    """Timed calls of each program; programs take turns and the fastest call counts."""
    torch_python: FilePath | None = None
    """A Python that has torch, to time its scaled_dot_product_attention on the same shapes and cores."""
    out: FilePath | None = None
    """JSON file for the results."""

    def __post_init__(self) -> None:
        refuse_doubles(self)
        if self.query_heads % self.kv_heads:
            raise ConfigError(f"query_heads is {self.query_heads}; want a multiple of kv_heads, {self.kv_heads}.")
        check_least(self, 1, "tokens", "sparse_tokens", "rounds", "head_dim")


@dataclass(frozen=True)
class BenchPrefillSettings:
    """What is timed, and against what."""

    model: FilePath = smollm2.NAME
    """Hugging Face directory or hub id, .gguf file, Elastic Attention checkpoint, or `smollm2`."""
    router: FilePath | None = None
    """Directory of a router-only checkpoint; by default the model's own."""
    heads: FilePath | None = None
    """Calibrated heads to time as well: what `train heads` writes, a full_attention_heads.tsv of DuoAttention, or
    `smollm2`; by default those saved with the model."""
    msr: float | None = None
    """Share of heads, 0 to 1, that the calibrated heads leave sparse; by default as they say."""
    lengths: tuple[int, ...] = (2048, 8192)
    """Tokens of the prompts that the whole model reads."""
    dtypes: tuple[Literal["float32", "bfloat16"], ...] = ("float32", "bfloat16")
    """Number formats of the weights."""
    repeats: int = 1
    """Timed runs after the warming one; the median counts."""
    torch_python: FilePath | None = None
    """A Python that has torch and transformers, to time the same weights and prompts there."""
    out: FilePath | None = None
    """JSON file for the results."""

    def __post_init__(self) -> None:
        refuse_doubles(self)
        check_least(self, 1, "lengths", "repeats")
        check_filled(self, "dtypes")


@dataclass(frozen=True)
class BenchCacheSettings(ModelSettings):
    """Which caches, at which sizes, and what is measured of them."""

    out: FilePath | None = None
    """Folder of the report and of the journals; give the same folder again to go on after an interruption."""
    bits: tuple[int, ...] = (16, 2, 4, 8)
    """Kinds of cache, by bits per stored element; 16 is the unquantised one, in the model dtype."""
    speed: bool = True
    """Whether bytes and decode speed are measured."""
    tokens: int = 4096
    """Tokens of each row when decode speed is measured."""
    batch: int = 8
    """Rows that decode together."""
    dtypes: tuple[Literal["float32", "bfloat16"], ...] = ("float32", "bfloat16")
    """Number formats of weights and exact tokens when decode speed is measured."""
    budget_mib: int | None = None
    """Memory of a cache in MiB for the largest batch that fits; by default that of the unquantised one at `batch`."""
    steps: int = 16
    """Decode steps of one timed call."""
    rounds: int = 2
    """Timed calls of each kind of cache; kinds take turns and the fastest call counts."""
    torch_python: FilePath | None = None
    """A Python that has torch and transformers, to time its caches with the same weights on the same cores."""
    quality: bool = False
    """Whether perplexity and retrieval are measured, with each key transform, with and without outliers."""
    key_transforms: tuple[KeyTransform, ...] = KEY_TRANSFORMS
    """Key transforms whose quality is measured."""
    texts: FilePath | None = None
    """Folder of *.txt prose, of which the evaluation split is used; by default Python's language reference."""
    code: FilePath | None = None
    """Folder of *.py sources, of which the evaluation split is used; by default the standard library."""
    quality_tokens: int = 2048
    """Tokens of the windows of running text and of the retrieval prompts."""
    windows: int = 8
    """Windows of prose, and of code; 0 leaves perplexity out."""
    scored_tokens: int = 128
    """Tokens at the end of each window that are fed through the cache, and scored."""
    probes: int = 16
    """Retrieval prompts of each kind (pass key, key-value, fact); 0 leaves retrieval out."""
    rows: int = 8
    """Prompts read together; bounds the memory."""
    view: Literal["full", "elastic"] = "full"
    """Heads of the quality run: all full, so that quantisation is the only difference, or as the calibrated heads, or
    without any the routers decide."""
    seed: int = 0
    """Chooses texts, needles and their places."""

    def __post_init__(self) -> None:
        refuse_doubles(self)
        unknown = [bits for bits in self.bits if bits not in BITS]
        if unknown or 16 not in self.bits:
            raise ConfigError(f"bits is {list(self.bits)}; want 16, to compare with, and any of 2, 4 and 8.")
        check_least(self, 1, "tokens", "batch", "steps", "rounds", "rows", "budget_mib")
        if min(self.windows, self.probes) < 0 or not self.windows + self.probes:
            raise ConfigError(f"windows is {self.windows} and probes {self.probes}; want one of them above 0.")
        if not 0 < self.scored_tokens < self.quality_tokens:
            raise ConfigError(f"scored_tokens is {self.scored_tokens}; want 1 to {self.quality_tokens - 1}.")
        check_filled(self, "dtypes", "key_transforms")
        if "none" not in self.key_transforms:
            raise ConfigError(f"key_transforms is {list(self.key_transforms)}; want none among them, to compare with.")
        if not self.speed and not self.quality:
            raise ConfigError("neither speed nor quality is asked for; give --speed or --quality.")

    @property
    def room(self) -> int:
        """Tokens that the timed calls and the warming one add to every row."""
        return self.steps * (self.rounds + 1)
