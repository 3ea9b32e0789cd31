"""Settings of router training, one dataclass per subject; field docstrings are the command's help texts."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Literal

from elastic_jax.config import RouterConfig
from elastic_jax.errors import ConfigError
from elastic_jax.settings import FilePath, check_least
from elastic_jax.sharding import MeshConfig
from train.optim_config import OptimConfig
from train.run_config import DistributedConfig, RunConfig


@dataclass(frozen=True)
class TaskConfig:
    """One task's share of the data, its loss and its sparsity target."""

    count: int = 200
    """Records to build."""
    target: tuple[float, float] = (0.7, 1.0)
    """Wanted share of sparse heads (MSR), from - to; the official loss aims at the lower end."""
    loss_on: Literal["all", "answer"] = "answer"
    """Learn from every token or from the answer only."""
    loss_weight: float = 1.0
    """Factor of this task's language-model loss."""

    def __post_init__(self) -> None:
        low, high = self.target
        if not 0.0 <= low <= high <= 1.0:
            raise ConfigError(f"target {low} - {high}: want 0 <= from <= to <= 1.")
        check_least(self, 0, "count", "loss_weight")


@dataclass(frozen=True)
class TasksConfig:
    """The five tasks, in the order of their ids."""

    single_qa: TaskConfig = field(default_factory=lambda: TaskConfig(target=(0.65, 0.85)))
    multihop_qa: TaskConfig = field(default_factory=lambda: TaskConfig(target=(0.65, 0.85)))
    summarization: TaskConfig = field(default_factory=lambda: TaskConfig(target=(0.9, 1.0), loss_on="all"))
    code: TaskConfig = field(default_factory=lambda: TaskConfig(target=(0.9, 1.0), loss_on="all"))
    icl: TaskConfig = field(default_factory=lambda: TaskConfig(target=(0.8, 1.0)))

    @property
    def by_id(self) -> tuple[TaskConfig, ...]:
        return tuple(getattr(self, item.name) for item in fields(self))


@dataclass(frozen=True)
class DataConfig:
    """Where the training texts come from and how they become rows."""

    folder: FilePath | None = None
    """Folder of .txt, .py and .jsonl files to build records from; without it the standard library is used."""
    records: FilePath | None = None
    """Finished data, used instead of building any: JSON-lines, Parquet or Arrow file or folder, of records (context,
    question, answer, metadata) or of tokenised rows as the released code packs them (input_ids, labels, seq_lengths,
    task_ids, range_ids)."""
    exclude: tuple[str, ...] = ()
    """Shell patterns, relative to the folder, of files to leave out."""
    min_tokens: int = 1024
    """Shortest sample to build, tokens (about)."""
    max_tokens: int = 3840
    """Longest sample to build, tokens (about)."""
    evidence_share: float = 0.3
    """Share of a task's records that is made from question files, if there are any for the task."""
    template: Literal["raw", "chat", "mixed"] = "mixed"
    """Prompt form: plain continuation, chat template, or each for half of the records."""
    weighting: Literal["tokens", "samples"] = "samples"
    """Whether every token or every sample counts alike in the loss."""
    row_length: int = 8192
    """Tokens of a packed row. With twice the longest sample or more, little of a row stays empty."""
    max_segments: int = 8
    """Most samples in one row."""
    held_out: float = 0.0
    """Share of the samples that is not trained on but evaluated, every `run.eval_every` steps."""
    packing: Literal["best_fit", "first_fit"] = "best_fit"
    """`best_fit` looks for the fullest rows over a whole epoch; `first_fit` fills 8 rows at a time, in the order of
    the samples."""

    def __post_init__(self) -> None:
        if self.folder is not None and self.records is not None:
            raise ConfigError("folder and records are both set. Keep the one to train on.")
        if not 0.0 <= self.evidence_share <= 1.0:
            raise ConfigError(f"evidence_share is {self.evidence_share}; want 0 to 1.")
        if not 0.0 <= self.held_out < 1.0:
            raise ConfigError(f"held_out is {self.held_out}; want a share of the samples, 0 <= held_out < 1.")
        check_least(self, 1, "row_length", "max_segments")


@dataclass(frozen=True)
class LossConfig:
    """What the routers learn from, at the tokens that `tasks` names."""

    kind: Literal["task", "distil", "both"] = "task"
    """`task`: cross-entropy of the next token, as released; `distil`: KL divergence from the same model with all heads
    full, for one more forward pass; `both`: their sum."""
    distil_weight: float = 1.0
    """Factor of the divergence."""

    def __post_init__(self) -> None:
        if self.distil_weight <= 0:
            raise ConfigError(f"loss.distil_weight is {self.distil_weight}; want above 0.")


@dataclass(frozen=True)
class SparsityConfig:
    """The constraint on the share of sparse heads (MSR)."""

    loss: Literal["interval", "official"] = "interval"
    """`interval`: a multiplier for each end of a target interval, raised while it is violated and lowered while it is
    not; `official`: the released code's lambda1 |d| + lambda2 d^2 around one target."""
    dual_learning_rate: float = 0.2
    """Step of the interval multipliers, per unit of MSR outside the interval and optimizer step."""
    dual_max: float = 20.0
    """Upper bound of the interval multipliers."""
    dual_start: float = 0.0
    """First value of the interval multipliers."""
    penalty: float = 2.0
    """Weight of the squared violation of the interval."""


@dataclass(frozen=True)
class GateConfig:
    """Sampling of the full-or-sparse decisions in training."""

    schedule: Literal["cosine", "exponential"] = "cosine"
    """Temperature over the steps: the released code's cosine or the paper's exponential."""
    start: float = 1.5
    """First temperature."""
    end: float = 1.0
    """Last temperature."""
    decay: float = 0.6
    """Cosine: fraction of the steps until the end is reached. Exponential: rate per step."""
    draws: int = 1
    """Independent draws of the gates for each row and step; more give a less noisy gradient at proportional cost."""
    initial_bias: float = 0.0
    """Initial bias of the full logit: with 0 half of the heads start full, with 3 95 % of them."""
    first_weights: Literal["official", "scaled"] = "official"
    """`official`: every kernel N(0, initializer_range), as released; `scaled`: N(0, 1/inputs), zeros in the last layer,
    so that the routers see the differences between prompts from the first step."""
    logit_penalty: float = 0.0
    """Weight of the mean squared difference of the two logits: keeps decisions open to revision."""

    def __post_init__(self) -> None:
        check_least(self, 1, "draws")
        if not 0 < self.end <= self.start or self.decay <= 0:
            raise ConfigError(
                f"temperature {self.start} - {self.end}, decay {self.decay}: want start >= end > 0 and decay > 0."
            )


@dataclass(frozen=True)
class WarmStartConfig:
    """Fitting of the routers to the measured worth of every head, before end-to-end training."""

    rows: tuple[int, ...] = ()
    """Packed rows on which heads are measured, a number for each round; none for no warm start. The first round goes
    from full attention towards all-sparse, each further one towards the routing fitted so far, so that it finds what
    that routing lacks."""
    key_rows: int = 0
    """Further rows of which only the pooled keys are read, at a sixth of the cost: more examples to fit to. With
    init_heads all rows are of this kind; there are 24 unless another number is given."""
    levels: tuple[float, ...] = (0.9, 0.5)
    """Points between the start (1) and the end (0) of a round at which the derivative in every gate is taken."""
    steps: int = 600
    """Steps of fitting the routers to the stored keys."""
    batch: int = 32
    """Samples in one step of fitting."""
    learning_rate: float = 1e-3
    """Peak learning rate; half a cosine to zero."""

    def __post_init__(self) -> None:
        if min(*self.rows, self.steps, self.batch, 1) < 1 or self.key_rows < 0 or self.learning_rate <= 0:
            raise ConfigError(
                f"rows {list(self.rows)}, key_rows {self.key_rows}, steps {self.steps}, batch {self.batch}, "
                f"learning_rate {self.learning_rate}: want key_rows >= 0 and the others above 0."
            )
        if not self.levels or not all(0.0 <= level <= 1.0 for level in self.levels):
            raise ConfigError(f"levels {self.levels}: want one or more numbers from 0 to 1.")


@dataclass(frozen=True)
class RouterTrainConfig:
    """Everything that decides a router training run."""

    model: FilePath | None = None
    """Model to train routers for: Hugging Face directory or hub id, .gguf file, or `smollm2`, the demo's model."""
    init: FilePath | None = None
    """Router directory to start from; without it the routers start fresh."""
    init_heads: FilePath | None = None
    """Record of `train heads`, or a run of it with records by task: routers are first fitted to keep full, for the
    prompts of each task, the heads of the record cut at the middle of the task's target."""
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    """Number format of the frozen backbone."""
    weights: Literal["model", "int8"] = "model"
    """How the matrices of the frozen layers are kept: in `dtype`, or as `int8` with a scale for each output channel:
    half the memory and half the bytes that a mesh gathers, for logits about 5 % off (SmolLM2: loss 3.073, not 3.070).
    With `int8` only `router` can be exported."""
    remat: bool | Literal["offload"] = False
    """Recompute each layer in the backward pass from its input: less memory, a third more time. `offload` keeps the
    inputs in the host's memory."""
    router: RouterConfig = field(default_factory=RouterConfig)
    tasks: TasksConfig = field(default_factory=TasksConfig)
    data: DataConfig = field(default_factory=DataConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    sparsity: SparsityConfig = field(default_factory=SparsityConfig)
    gates: GateConfig = field(default_factory=GateConfig)
    warm_start: WarmStartConfig = field(default_factory=WarmStartConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    mesh: MeshConfig = field(default_factory=MeshConfig)
    distributed: DistributedConfig = field(default_factory=DistributedConfig)
    run: RunConfig = field(default_factory=RunConfig)

    def __post_init__(self) -> None:
        if self.data.row_length % self.router.block_size:
            raise ConfigError(
                f"data.row_length {self.data.row_length} is no multiple of router.block_size {self.router.block_size}; "
                "samples start on block boundaries."
            )
        if self.weights == "int8" and set(self.run.export) != {"router"}:
            raise ConfigError(
                f"run.export is {list(self.run.export)}; with weights int8 only `router` can be written, as the "
                "model's own weights are not kept. Join it to the model afterwards: elastic-jax convert."
            )
        starts = {"init": self.init, "init_heads": self.init_heads, "warm_start.rows": self.warm_start.rows}
        chosen = [name for name, value in starts.items() if value]
        if len(chosen) > 1:
            raise ConfigError(
                f"{' and '.join(chosen)} are set. Start from given routers, from calibrated or from measured heads."
            )
        if self.warm_start.key_rows and not (self.warm_start.rows or self.init_heads):
            raise ConfigError(
                f"warm_start.key_rows is {self.warm_start.key_rows} with nothing to fit to. Set warm_start.rows or "
                "init_heads."
            )
        if bool(self.data.held_out) != bool(self.run.eval_every):
            raise ConfigError(
                f"data.held_out is {self.data.held_out} and run.eval_every {self.run.eval_every}: what is held out is "
                "for evaluation. Set both, or neither."
            )
