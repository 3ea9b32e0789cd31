"""`elastic-jax bench cache`: what a quantised cache saves in bytes and time, and what it costs in quality."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from elastic_jax.cli_args import parse_verb, required
from elastic_jax.cli_model import ModelSettings
from elastic_jax.errors import ConfigError
from elastic_jax.kv_cache.config import BITS, KEY_TRANSFORMS, KeyTransform
from elastic_jax.settings import settings_yaml


@dataclass(frozen=True)
class BenchCacheSettings(ModelSettings):
    """Which caches, at which sizes, and what is measured of them."""

    out: str | None = None
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
    torch_python: str | None = None
    """A Python that has torch and transformers, to time its caches with the same weights on the same cores."""
    quality: bool = False
    """Whether perplexity and retrieval are measured, with each key transform, with and without outliers."""
    key_transforms: tuple[KeyTransform, ...] = KEY_TRANSFORMS
    """Key transforms whose quality is measured."""
    texts: str | None = None
    """Folder of *.txt prose, of which the evaluation split is used; by default Python's language reference."""
    code: str | None = None
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
    """Heads of the quality run: all full, so that quantisation is the only difference, or as the routers decide."""
    seed: int = 0
    """Chooses texts, needles and their places."""

    def __post_init__(self) -> None:
        unknown = [bits for bits in self.bits if bits not in BITS]
        if unknown or 16 not in self.bits:
            raise ConfigError(f"bits is {list(self.bits)}; want 16, to compare with, and any of 2, 4 and 8.")
        for name in ("tokens", "batch", "steps", "rounds", "rows", "budget_mib"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name} is {value}; want at least 1.")
        if min(self.windows, self.probes) < 0 or not self.windows + self.probes:
            raise ConfigError(f"windows is {self.windows} and probes {self.probes}; want one of them above 0.")
        if not 0 < self.scored_tokens < self.quality_tokens:
            raise ConfigError(f"scored_tokens is {self.scored_tokens}; want 1 to {self.quality_tokens - 1}.")
        for name in ("dtypes", "key_transforms"):
            if not getattr(self, name):
                raise ConfigError(f"{name} is empty; want at least one.")
        if "none" not in self.key_transforms:
            raise ConfigError(f"key_transforms is {list(self.key_transforms)}; want none among them, to compare with.")
        if not self.speed and not self.quality:
            raise ConfigError("neither speed nor quality is asked for; give --speed or --quality.")

    @property
    def room(self) -> int:
        """Tokens that the timed calls and the warming one add to every row."""
        return self.steps * (self.rounds + 1)


def main(argv: Sequence[str]) -> int:
    """Compare quantised caches with the plain one: bytes, decode speed, perplexity, retrieval."""
    asked = parse_verb(BenchCacheSettings, argv, verb="bench cache", summary=str(main.__doc__))
    settings = asked.settings
    out = Path(required(settings.out, "--out FOLDER", "folder for the report"))
    if asked.dry_run:
        print(settings_yaml(settings), end="")
        return 0

    from eval.cache_bench import run_cache_bench

    run_cache_bench(settings, out)
    print(f"Report: {out / 'cache.md'}")
    return 0
