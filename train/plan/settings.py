"""Settings of `elastic-jax plan`: those of the run that is planned, and where it is to go."""

from __future__ import annotations

from dataclasses import dataclass, fields

from elastic_jax.errors import ConfigError
from train.config import RouterTrainConfig


@dataclass(frozen=True)
class PlanSettings(RouterTrainConfig):
    """A router training run, with the question that is asked of it. `--config` takes the YAML file of the run."""

    topology: str | None = None
    """Where: v4:2x2x2, v5e:8x8, v5p:4x4x4, v6e:8x8, tpu7x:2x2x1, a100:8, h100:8, ...; one slice of `mesh.slices`."""
    search: bool = False
    """Look for the fastest mesh, rows in a micro-batch and recomputation that fit; the whole batch (rows x accumulate)
    stays."""
    explain: bool = False
    """Print where every parameter goes, and its bytes on one device."""
    compile: bool = False
    """Compile one step with the TPU compiler (extra `tpu-aot`) and report what it says: minutes, no TPU needed."""
    sparse_share: float | None = None
    """Share of sparse heads to count with; default: the mean of the middles of the tasks' targets."""
    price: float | None = None
    """Price of one chip for an hour, in any currency."""
    json: bool = False
    """Print JSON."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.sparse_share is not None and not 0 <= self.sparse_share <= 1:
            raise ConfigError(f"sparse_share is {self.sparse_share}; want 0 to 1.")
        if self.price is not None and self.price <= 0:
            raise ConfigError(f"price is {self.price}; want more than 0 for a chip and hour.")

    def training(self) -> RouterTrainConfig:
        """The settings of the run alone."""
        return RouterTrainConfig(**{field.name: getattr(self, field.name) for field in fields(RouterTrainConfig)})
