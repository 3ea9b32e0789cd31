"""Settings of the calibration of heads. No JAX here."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Literal

from elastic_jax.config import Pattern, RouterConfig
from elastic_jax.errors import ConfigError
from elastic_jax.settings import FilePath
from elastic_jax.sharding import MeshConfig
from train.run_config import DistributedConfig, RunConfig

Kind = Literal["needles", "pairs", "chains", "labels", "code_needles", "prose", "code"]
"""What a sample asks for, see `train.heads.questions`."""
RETRIEVAL: tuple[Kind, ...] = ("needles", "pairs", "needles", "chains", "code_needles", "labels")
GROUPS = ("retrieval", "prose", "code")
"""What `per_task` keeps separate gates for; without it there is one group for all kinds."""


@dataclass(frozen=True)
class HeadsDataConfig:
    """The texts, and the samples that are made of them."""

    folder: FilePath | None = None
    """Folder of .txt and .py files to hide facts in; without it the standard library's prose and sources are used."""
    exclude: tuple[str, ...] = ()
    """Shell patterns, relative to the folder, of files to leave out."""
    kinds: tuple[Kind, ...] = RETRIEVAL
    """Samples to learn from, which take turns: facts among distractors in prose (`needles`), in source code, lists of
    keys and values, chains of facts, labels by example, running prose, running code. One named twice comes twice."""
    min_tokens: int = 1024
    """Shortest sample, tokens."""
    max_tokens: int = 4096
    """Longest sample, tokens. A set of heads holds up to about this length: calibrate at the lengths that matter."""
    lengths: int = 3
    """Lengths from the shortest to the longest, evenly spaced by ratio. Each one is a program to compile."""
    questions: int = 20
    """Most questions about one text."""
    chat_share: float = 0.5
    """Part of the samples that is written in the model's chat template, if it has one."""

    def __post_init__(self) -> None:
        if not 256 <= self.min_tokens <= self.max_tokens:
            raise ConfigError(
                f"data.min_tokens {self.min_tokens}, max_tokens {self.max_tokens}: want 256 <= min <= max."
            )
        if min(self.lengths, self.questions) < 1 or not self.kinds:
            raise ConfigError(
                f"data.lengths {self.lengths}, questions {self.questions}, kinds {list(self.kinds)}: want 1 or more of "
                "each."
            )
        if not 0.0 <= self.chat_share <= 1.0:
            raise ConfigError(f"data.chat_share is {self.chat_share}; want 0 to 1.")

    @property
    def sizes(self) -> tuple[int, ...]:
        """Tokens of the samples: multiples of 128, rising."""
        count = self.lengths if self.min_tokens < self.max_tokens else 1
        ratio = self.max_tokens / self.min_tokens
        exact = [self.min_tokens * ratio ** (place / max(count - 1, 1)) for place in range(count)]
        return tuple(dict.fromkeys(-(-round(size) // 128) * 128 for size in exact))


@dataclass(frozen=True)
class HeadsOptimConfig:
    """How the gates move."""

    steps: int = 84
    """Optimizer steps. The first 2/5 of them take the shortest samples, which close most gates at little cost, the
    others all longer lengths in turn."""
    rows: int = 1
    """Samples of a step; all have the same length."""
    start: float = 0.5
    """First value of every gate. Half open, needed gates rise from the first step on; from 1 all of them first
    fall together, which takes as many steps again."""
    learning_rate: float = 0.05
    """Peak step of a gate (Adam); 1/10 of the steps rise to it, the last quarter falls to a twentieth of it."""
    price: float = 0.004
    """First price of an open gate, in units of the loss. With a target it is raised or lowered from here."""
    price_rate: float = 0.04
    """How fast the price follows a target: each step multiplies it by (open gates / wanted ones) to this power."""
    binary: float = 0.01
    """Weight of z (1 - z) at the end, which drives every gate to 0 or 1; it rises over the second half of the steps."""

    def __post_init__(self) -> None:
        if min(self.steps, self.rows) < 1 or self.learning_rate <= 0 or self.price <= 0:
            raise ConfigError(
                f"optim.steps {self.steps}, rows {self.rows}, learning_rate {self.learning_rate}, price {self.price}: "
                "want steps and rows of 1 or more, and the others above 0."
            )
        if not 0.0 < self.start <= 1.0:
            raise ConfigError(f"optim.start is {self.start}; want above 0 and at most 1.")
        if min(self.price_rate, self.binary) < 0:
            raise ConfigError(f"optim.price_rate {self.price_rate}, binary {self.binary}: want 0 or more.")


@dataclass(frozen=True)
class SparseConfig:
    """What sparse heads see; fields of `RouterConfig`, whose others do not matter here."""

    pattern: Pattern = "fa-ssa"
    """Attention of full heads - attention of sparse heads: sinks and window (fa-ssa), or blocks chosen by content."""
    block_size: int = 128
    """Tokens of a block."""
    sink_blocks: int = 1
    """Blocks at the start that sparse heads see."""
    local_blocks: int = 2
    """Blocks up to the token's own that sparse heads see."""
    xa_threshold: float = 0.9
    """Share of a query block's worth that the kept blocks of an XA head reach."""
    xa_stride: int = 16
    """Tokens of a group that XA scores at once."""

    def __post_init__(self) -> None:
        RouterConfig(**dataclasses.asdict(self))  # raises ConfigError


@dataclass(frozen=True)
class SettleConfig:
    """How the order of the heads is settled on samples that were not trained on, after the gates."""

    samples: int = 2
    """Held-out samples of each length that hard sets are compared on."""
    swaps: int = 8
    """Most exchanges that are tried between a head in the set of the target and one outside."""
    msr: tuple[float, ...] = (0.9, 0.85, 0.8, 0.75, 0.7, 0.6, 0.5)
    """Shares of sparse heads at which the curve is measured."""

    def __post_init__(self) -> None:
        if self.samples < 1 or self.swaps < 0:
            raise ConfigError(f"settle.samples {self.samples}, swaps {self.swaps}: want 1 or more, and 0 or more.")
        if any(not 0.0 < share < 1.0 for share in self.msr):
            raise ConfigError(f"settle.msr is {list(self.msr)}; want shares between 0 and 1.")


@dataclass(frozen=True)
class HeadsRunConfig(RunConfig):
    """The run directory, and how often it is saved."""

    save_every: int = 10
    """Steps between checkpoints."""
    export: tuple[Literal["heads"], ...] = ("heads",)  # pyrefly: ignore[bad-override]
    """What is written to `DIRECTORY/heads` at the end."""


@dataclass(frozen=True)
class HeadsTrainConfig:
    """Everything that decides a calibration of heads."""

    model: FilePath | None = None
    """Model to calibrate: Hugging Face directory or hub id, .gguf file, or `smollm2`, the demo's model."""
    dtype: Literal["bfloat16", "float32"] = "float32"
    """Number format of the model; float32 is the faster one on a CPU."""
    remat: bool = False
    """Recompute each layer in the backward pass: less memory, a third more time."""
    sparse: SparseConfig = field(default_factory=SparseConfig)
    target_msr: float | None = 0.8
    """Share of sparse heads that the price is steered to, and where the result is cut unless asked otherwise; null
    keeps the price as it is."""
    loss: Literal["kl", "hidden"] = "kl"
    """Distance from full attention at the scored tokens: of next-token distributions, or of the last hidden states."""
    per_task: bool = False
    """Keep separate gates for retrieval, prose and code."""
    least_answered: float = 0.02
    """Share of the scored tokens that full attention has to predict; below it the run stops before it trains, because
    nothing shows which heads a model needs for what it cannot do."""
    data: HeadsDataConfig = field(default_factory=HeadsDataConfig)
    optim: HeadsOptimConfig = field(default_factory=HeadsOptimConfig)
    settle: SettleConfig = field(default_factory=SettleConfig)
    mesh: MeshConfig = field(default_factory=MeshConfig)
    distributed: DistributedConfig = field(default_factory=DistributedConfig)
    run: HeadsRunConfig = field(default_factory=HeadsRunConfig)

    @property
    def router(self) -> RouterConfig:
        """`sparse` as a record of heads keeps it."""
        return RouterConfig(**dataclasses.asdict(self.sparse))

    def __post_init__(self) -> None:
        if not 0.0 <= self.least_answered <= 1.0:
            raise ConfigError(f"least_answered is {self.least_answered}; want 0 to 1.")
        if self.target_msr is not None and not 0.0 < self.target_msr < 1.0:
            raise ConfigError(f"target_msr is {self.target_msr}; want a share between 0 and 1, or null.")
        seen = (self.sparse.sink_blocks + self.sparse.local_blocks) * self.sparse.block_size
        if self.sparse.pattern == "fa-ssa" and seen >= self.data.min_tokens:
            raise ConfigError(
                f"sparse heads see {seen} tokens, samples begin at data.min_tokens {self.data.min_tokens}: nothing "
                "would be sparse. Raise data.min_tokens, or lower sparse.local_blocks."
            )
        kinds = set(self.data.kinds)
        if self.per_task and not ({"prose", "code"} <= kinds and kinds & set(RETRIEVAL)):
            raise ConfigError(
                f"per_task wants samples of retrieval, prose and code; data.kinds is {list(self.data.kinds)}. Add what "
                "is missing."
            )
