"""What a key/value cache stores, and what decoding reads from it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from elastic_jax.config.checks import check_whole
from elastic_jax.errors import ConfigError

KeyTransform = Literal["none", "hadamard", "hadamard+token_norm"]
OutlierStat = Literal["l1", "l2"]
OutlierScope = Literal["head", "layer"]

BITS = (2, 4, 8, 16)
KEY_TRANSFORMS: tuple[KeyTransform, ...] = get_args(KeyTransform)
GROUP_STEP = 32
"""Groups are a multiple of this, so that codes and the bit mask of holes fill whole words."""


@dataclass(frozen=True)
class CacheConfig:
    """Settings of the key/value cache. Below 16 bits, the newest tokens and a few outlier tokens stay exact."""

    bits: int = 16
    """Bits per stored element, 2, 4, 8 or 16; 16 keeps the model dtype and ignores every setting but sparse_decode."""
    group: int = 128
    """Tokens that are quantised together: in a group, each channel of the keys has one scale and one zero."""
    residual: int = 32
    """Number of newest tokens that are always exact."""
    outliers: int = 3
    """Number of tokens with the smallest keys that each head keeps exact; 0: none."""
    outlier_store: int = 32
    """Places for tokens that were outliers until smaller keys came; when they run out, tracing stops."""
    untraced_layers: int = 2
    """Number of first layers that keep no outlier tokens."""
    outlier_stat: OutlierStat = "l1"
    """Norm by which keys are compared."""
    outlier_scope: OutlierScope = "head"
    """Whether every KV head chooses its own outliers or the heads of a layer choose together."""
    sparse_decode: bool = True
    """Sparse heads attend to sinks and local window while decoding too, and below 16 bits store no more; False gives
    every head the whole past, as the released code of Elastic Attention does."""
    key_transform: KeyTransform = "hadamard"
    """`hadamard` rotates queries and keys by a Hadamard matrix: at 2 bits it takes no memory and removes a third of the
    loss that quantisation adds. `token_norm` stores the norm of each key separately."""

    def __post_init__(self) -> None:
        check_whole("cache", 1, bits=self.bits, group=self.group)
        check_whole(
            "cache",
            0,
            residual=self.residual,
            outliers=self.outliers,
            outlier_store=self.outlier_store,
            untraced_layers=self.untraced_layers,
        )
        if self.bits not in BITS:
            raise ConfigError(f"cache bits is {self.bits}; want 2, 4, 8 or 16.")
        if self.group < GROUP_STEP or self.group % GROUP_STEP:
            raise ConfigError(f"cache group is {self.group} tokens; want a multiple of {GROUP_STEP}, such as 128.")
        if self.outliers >= self.group:
            raise ConfigError(
                f"cache outliers is {self.outliers} in groups of {self.group} tokens; want fewer than a group."
            )
        for name, choices in (
            ("outlier_stat", OutlierStat),
            ("outlier_scope", OutlierScope),
            ("key_transform", KeyTransform),
        ):
            if getattr(self, name) not in get_args(choices):
                raise ConfigError(
                    f"cache {name} is {getattr(self, name)!r}; want one of {', '.join(get_args(choices))}."
                )

    @property
    def rotates(self) -> bool:
        return self.key_transform != "none"

    @property
    def normalizes(self) -> bool:
        return self.key_transform == "hadamard+token_norm"

    def check_head_dim(self, head_dim: int) -> None:
        """Raises `ConfigError` where values cannot be quantised by whole groups of channels."""
        if self.bits < 16 and head_dim % min(self.group, head_dim):
            raise ConfigError(
                f"cache group {self.group} does not divide the head dimension {head_dim}; values are quantised over "
                f"groups of as many channels. Use a group of {GROUP_STEP} * n that divides {head_dim}, or a larger one."
            )
