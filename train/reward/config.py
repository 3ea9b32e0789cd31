"""Settings of `train sft`, `train simpo` and `train bt`; field docstrings are the commands' help texts.

Defaults are the values that LongRM (arXiv 2510.06915, appendix, tables 4 and 5) trained 8B models with.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, get_args

from elastic_jax.errors import ConfigError
from elastic_jax.settings import FilePath, check_least
from elastic_jax.sharding import MeshConfig
from train.optim_config import AdamConfig
from train.run_config import DistributedConfig, RunConfig

Rejects = Literal["mean", "each"]
"""`mean`: the rejected responses of a pair are averaged before they are compared; `each`: compared one by one."""
Target = Literal[
    "attn.q_proj", "attn.k_proj", "attn.v_proj", "attn.o_proj", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"
]


@dataclass(frozen=True)
class LoraConfig:
    """Low-rank adapters."""

    rank: int = 0
    """Rank of the adapters; 0 trains every weight of the decoder instead. A score head is always trained."""
    alpha: float = 16.0
    """Their output is scaled by alpha / rank."""
    targets: tuple[Target, ...] = get_args(Target)
    """Linear maps of each layer that get adapters."""

    def __post_init__(self) -> None:
        if self.rank < 0 or self.alpha <= 0 or not self.targets:
            raise ConfigError(
                f"rank {self.rank}, alpha {self.alpha}, {len(self.targets)} targets: want rank >= 0, alpha > 0 and "
                "one target or more."
            )

    @property
    def scale(self) -> float:
        return self.alpha / self.rank


@dataclass(frozen=True)
class RewardRunConfig(RunConfig):
    """Where the run is kept and how often it reports."""

    export: tuple[Literal["hf"], ...] = ("hf",)
    """Formats written to `DIRECTORY/FORMAT` at the end, adapters merged; `hf` opens in transformers."""


@dataclass(frozen=True)
class RecordsConfig:
    """Where records come from."""

    records: FilePath | None = None
    """Records to train on: .jsonl, .parquet or an Arrow directory; without it they are generated."""
    held_out: FilePath | None = None
    """Records to measure on, in the same form; with `records`, required."""
    generated: int = 400
    """Records to generate for training."""
    generated_held_out: int = 100
    """Records to generate for measuring; none of their texts is trained on."""
    generated_buildings: int = 4
    """Length of generated texts: each building they tell of takes about 50 tokens."""

    def __post_init__(self) -> None:
        if (self.records is None) != (self.held_out is None):
            raise ConfigError("records and held_out go together: give files for both, or for neither.")
        check_least(self, 1, "generated", "generated_held_out", "generated_buildings")


@dataclass(frozen=True)
class PairDataConfig(RecordsConfig):
    """Preference records and the static shape that they are brought to."""

    prompt_tokens: int = 130560
    """Room for a prompt, tokens. Longer ones lose the middle of their context, never a response."""
    response_tokens: int = 512
    """Room for each response, tokens; records with a longer one are skipped and counted."""
    rejects: int = 2
    """Most rejected responses of a record that are used."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_least(self, 1, "prompt_tokens", "response_tokens", "rejects")


@dataclass(frozen=True)
class JudgeDataConfig(RecordsConfig):
    """Judge records, a prompt and the judgement to learn, packed into rows."""

    row_length: int = 131072
    """Tokens of a packed row."""
    max_segments: int = 8
    """Most samples in one row."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_least(self, 1, "row_length", "max_segments")


@dataclass(frozen=True)
class SimpoConfig:
    """SimPO with several rejected responses (LOGO)."""

    beta: float = 2.5
    """Factor of the difference between mean log-probabilities."""
    gamma: float = 0.5
    """Margin that beta * difference is asked to exceed."""
    nll_weight: float = 0.05
    """Weight of the chosen responses' negative log-likelihood."""
    form: Literal["sigmoid", "hinge"] = "sigmoid"
    """Negative log-sigmoid, or the hinge at 1."""
    rejects: Rejects = "mean"
    """Compare with the mean of the rejected responses, or with each and average the losses."""
    label_smoothing: float = 0.0
    """Probability that a label is the wrong way round."""

    def __post_init__(self) -> None:
        if self.beta <= 0 or self.nll_weight < 0 or not 0 <= self.label_smoothing < 0.5:
            raise ConfigError(
                f"beta {self.beta}, nll_weight {self.nll_weight}, label_smoothing {self.label_smoothing}: want "
                "beta > 0, nll_weight >= 0 and 0 <= label_smoothing < 0.5."
            )
        if self.form == "hinge" and self.label_smoothing:
            raise ConfigError(f"label_smoothing is {self.label_smoothing}; form hinge has none. Set it to 0.")


@dataclass(frozen=True)
class BradleyTerryConfig:
    """Bradley-Terry over scalar scores."""

    use_margin: bool = False
    """Ask for the record's margin between the scores, where it has one."""
    centring: float = 0.0
    """Weight of (chosen + rejected)^2, which keeps scores around 0."""
    rejects: Rejects = "mean"
    """Compare with the mean of the rejected scores, or with each and average the losses."""

    def __post_init__(self) -> None:
        check_least(self, 0, "centring")


@dataclass(frozen=True)
class RewardModelSettings:
    """Which model is trained and how it runs."""

    model: FilePath | None = None
    """Model to train: Hugging Face directory or hub id, .gguf file, or `smollm2`, the demo's model."""
    router: FilePath | None = None
    """Router directory for the model; needed for `routing: routers` where the model has none."""
    routing: Literal["full", "routers"] = "full"
    """Full attention in every head, or as the routers decide; they are not trained here."""
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    """Number format of the computation and of the exported model. What learns is kept in float32."""
    block_size: int | None = None
    """Tokens that rows are rounded up to; unset for the model's, which routed heads need. A smaller one saves padding
    after short responses."""
    remat: bool | Literal["offload"] = True
    """Recompute each layer in the backward pass from its input: less memory, a third more time. `offload` keeps the
    inputs in the host's memory."""
    lora: LoraConfig = field(default_factory=LoraConfig)
    optim: AdamConfig = field(default_factory=AdamConfig)
    mesh: MeshConfig = field(default_factory=MeshConfig)
    distributed: DistributedConfig = field(default_factory=DistributedConfig)
    run: RewardRunConfig = field(default_factory=RewardRunConfig)

    def __post_init__(self) -> None:
        if self.block_size is not None and self.routing == "routers":
            raise ConfigError("block_size is set, but routers decide by the blocks of their own model. Leave it out.")


@dataclass(frozen=True)
class SftConfig(RewardModelSettings):
    """Everything that decides a run of supervised training of a judge."""

    data: JudgeDataConfig = field(default_factory=JudgeDataConfig)


@dataclass(frozen=True)
class PairSettings(RewardModelSettings):
    """What training on preferences adds."""

    layout: Literal["shared", "separate"] = "shared"
    """`shared`: a prompt is computed once for its responses; `separate`: anew with each, for models whose rope or
    sparse pattern depends on what follows."""
    data: PairDataConfig = field(default_factory=PairDataConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.layout == "shared" and self.remat == "offload":
            raise ConfigError("remat offload is for rows of their own; set layout separate, or remat true.")


@dataclass(frozen=True)
class SimpoTrainConfig(PairSettings):
    """Everything that decides a run of preference optimisation of a judge."""

    loss: SimpoConfig = field(default_factory=SimpoConfig)


@dataclass(frozen=True)
class BradleyTerryTrainConfig(PairSettings):
    """Everything that decides a run of scalar reward model training."""

    head: Literal["new", "given"] = "new"
    """Draw a new score head for a language model, or go on with the head of a reward model."""
    loss: BradleyTerryConfig = field(default_factory=BradleyTerryConfig)
