"""`elastic-jax demo`: settings and command line of the demonstration."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from elastic_jax.cli_args import parse_verb
from elastic_jax.errors import ConfigError
from elastic_jax.settings import settings_yaml


@dataclass(frozen=True)
class DemoSettings:
    """Size of the demonstration, and where it writes."""

    out: str = "runs/demo"
    """Folder for the picture, the training run and the checkpoints (about 600 MB)."""
    prompt_tokens: int = 1536
    """Length of each prompt, in tokens; sparse heads skip work from about 400 tokens on."""
    train_steps: int = 6
    """Optimizer steps of router training; 0 leaves it out."""

    def __post_init__(self) -> None:
        if not 512 <= self.prompt_tokens <= 4096:
            raise ConfigError(f"prompt_tokens is {self.prompt_tokens}; want 512 to 4096.")
        if self.train_steps < 0:
            raise ConfigError(f"train_steps is {self.train_steps}; want 0 or more.")


def main(argv: Sequence[str]) -> int:
    """See a small model route different prompts, answer, train its routers and save: minutes on a CPU, no network."""
    asked = parse_verb(DemoSettings, argv, verb="demo", summary=str(main.__doc__))
    if asked.dry_run:
        print(settings_yaml(asked.settings), end="")
        return 0

    from train.demo.tour import take_tour

    take_tour(asked.settings)
    return 0
