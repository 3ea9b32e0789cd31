"""`elastic-jax bench attention`: is skipped work skipped time, and how do we compare with torch?"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from elastic_jax.cli_args import parse_verb
from elastic_jax.errors import ConfigError
from elastic_jax.settings import settings_yaml


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
    torch_python: str | None = None
    """A Python that has torch, to time its scaled_dot_product_attention on the same shapes and cores."""
    out: str | None = None
    """JSON file for the results."""

    def __post_init__(self) -> None:
        if self.query_heads % self.kv_heads:
            raise ConfigError(f"query_heads is {self.query_heads}; want a multiple of kv_heads, {self.kv_heads}.")
        if min(self.tokens, self.sparse_tokens, self.rounds, self.head_dim) < 1:
            raise ConfigError("tokens, sparse_tokens, rounds and head_dim want at least 1.")


def main(argv: Sequence[str]) -> int:
    """Time attention alone: full against torch, a sparse mixture against full, the training form against full."""
    asked = parse_verb(BenchAttentionSettings, argv, verb="bench attention", summary=str(main.__doc__))
    settings = asked.settings
    if asked.dry_run:
        print(settings_yaml(settings), end="")
        return 0
    from eval.speed_attention import full_against_torch, mixture_against_full, training_against_full

    speeds = [mixture_against_full(settings), training_against_full(settings)]
    if settings.torch_python is not None:
        speeds.insert(0, full_against_torch(settings))
    for speed in speeds:
        line = (
            f"{speed.compared}, {speed.tokens:,} tokens: {speed.seconds:.3f} s against {speed.baseline_seconds:.3f} s"
        )
        line += f": {speed.speed_up:.2f}x"
        if speed.allowed is not None:
            line += f", {speed.speed_up / speed.allowed:.2f} of the {speed.allowed:.2f}x that the skipped work allows"
        print(line)
    if settings.out is not None:
        Path(settings.out).parent.mkdir(parents=True, exist_ok=True)
        Path(settings.out).write_text(json.dumps([asdict(speed) for speed in speeds], indent=1) + "\n")
    return 0
