"""Settings of the demonstration."""

from dataclasses import dataclass

from elastic_jax.errors import ConfigError
from elastic_jax.settings import FilePath, check_least


@dataclass(frozen=True)
class DemoSettings:
    """Size of the demonstration, and where it writes."""

    out: FilePath = "runs/demo"
    """Folder for the picture, the training run and the checkpoints (about 600 MB)."""
    prompt_tokens: int = 1536
    """Length of each prompt, in tokens; sparse heads skip work from about 400 tokens on."""
    train_steps: int = 6
    """Optimizer steps of router training; 0 leaves it out."""

    def __post_init__(self) -> None:
        if not 512 <= self.prompt_tokens <= 4096:
            raise ConfigError(f"prompt_tokens is {self.prompt_tokens}; want 512 to 4096.")
        check_least(self, 0, "train_steps")
