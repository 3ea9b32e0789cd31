"""Settings that all benchmarks share."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from elastic_jax.cli.model import ModelSettings
from elastic_jax.errors import ConfigError
from elastic_jax.settings import FilePath, check_filled, check_least

ViewName = Literal["full", "sparse", "elastic", "heads"]


@dataclass(frozen=True)
class BenchmarkSettings(ModelSettings):
    """Which model runs how, and where results go."""

    out: FilePath | None = None
    """Folder of the report and of the journal; give the same folder again to go on after an interruption."""
    views: tuple[ViewName, ...] = ("full", "sparse", "elastic")
    """Ways to run attention that are compared: every head full, every head sparse, as the routers decide, calibrated
    heads. The last are also compared where --heads names any."""
    pattern: Literal["fa-ssa", "fa-xa", "xa-ssa"] | None = None
    """Attention of full heads - attention of sparse heads; by default the router's own."""
    sink_blocks: int | None = None
    """Blocks at the start that sparse heads see; by default the router's own."""
    local_blocks: int | None = None
    """Blocks up to the token's own that sparse heads see; by default the router's own."""
    cache_bits: tuple[int, ...] = ()
    """Bits per element of further caches under which elastic attention and calibrated heads are run as well: 2, 4 or
    8."""
    router_bias: tuple[float, ...] = (0.0,)
    """Values added to logit_full - logit_sparse, one elastic run each: positive for quality, negative for sparsity."""
    head_scores: FilePath | None = None
    """Ranking of the heads, needed by --forced-msr: `heads.json` of `eval heads`, or calibrated heads."""
    forced_msr: tuple[float, ...] = ()
    """Shares of heads to run sparse whatever the prompt, the last in the ranking first; one further run each."""
    endpoint: str | None = None
    """Address of an OpenAI-compatible API that answers instead; --model then gives the tokenizer that counts tokens."""
    endpoint_model: str = ""
    """Name of the model at the endpoint. The key is read from the environment variable OPENAI_API_KEY."""
    endpoint_tokens: int | None = None
    """Tokens of prompt and answer that the endpoint's model takes; without it nothing is cut or refused for length."""
    concurrency: int = 8
    """Requests to the endpoint under way at one time."""
    timeout_s: float = 600.0
    """Seconds to wait for one answer of the endpoint."""
    retries: int = 5
    """Further tries after a lost connection or an answer that says to try again."""
    chat: bool = False
    """Wrap prompts in the model's chat template."""
    batch_tokens: int = 8192
    """Tokens of one batch, at least one prompt; bounds the memory."""
    limit: int | None = None
    """At most this many samples of each task at each length, for a quick look."""
    shard: str = "0/1"
    """Part of the samples that this process does, such as 0/4; the parts share --out. When all
    are done, give the command once more without --shard: it measures nothing and writes the whole report."""
    seed: int = 0
    """Chooses what is left to chance."""

    def __post_init__(self) -> None:
        refuse_doubles(self)
        check_least(self, 1, "limit", "batch_tokens", "endpoint_tokens", "concurrency")
        check_filled(self, "views", "router_bias")
        if any(not 0 <= share <= 1 for share in self.forced_msr):
            raise ConfigError(f"forced_msr is {list(self.forced_msr)}; want shares from 0 to 1.")
        if self.forced_msr and self.head_scores is None:
            raise ConfigError(
                "forced_msr wants a ranking of the heads: give --head-scores, a heads.json of eval heads or heads that "
                "train heads calibrated."
            )
        wrong = [bits for bits in self.cache_bits if bits not in (2, 4, 8)]
        if wrong:
            raise ConfigError(f"cache_bits has {wrong[0]}; want 2, 4 or 8 (16 is what every other run has).")

    @property
    def compares_heads(self) -> bool:
        """Whether calibrated heads are one of the arms."""
        return self.heads is not None or "heads" in self.views

    def samples(self, wanted: int) -> int:
        """How many samples `limit` leaves of those wanted."""
        return wanted if self.limit is None else min(wanted, self.limit)


def refuse_doubles(settings: Any) -> None:
    """Raises `ConfigError` for a setting that has a value twice, which would be measured, and counted, twice."""
    for field in dataclasses.fields(settings):
        values = getattr(settings, field.name)
        if isinstance(values, tuple) and len(set(values)) < len(values):
            double = next(value for place, value in enumerate(values) if value in values[:place])
            raise ConfigError(f"{field.name} has {double!r} twice; want each value once.")


def split_commas(argv: Sequence[str], *flags: str) -> list[str]:
    """Arguments in which `--flag 1,2` and `--flag=1,2` of the named flags read `--flag 1 2`."""
    split: list[str] = []
    inside = False
    for argument in argv:
        name, equals, value = argument.partition("=")
        if argument.startswith("--"):
            inside = name in flags
            if inside and equals:
                split += [name, *filter(None, value.split(","))]
                continue
        split += filter(None, argument.split(",")) if inside and not argument.startswith("--") else [argument]
    return split


LISTS = ("--lengths", "--tasks", "--views", "--cache-bits", "--router-bias", "--forced-msr", "--depths")
"""Flags that take several values, with commas or blanks between them."""
