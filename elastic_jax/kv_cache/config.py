"""What a key/value cache stores, and what decoding reads from it."""

from __future__ import annotations

from dataclasses import dataclass

from elastic_jax.errors import ConfigError


@dataclass(frozen=True)
class CacheConfig:
    """Settings of the key/value cache."""

    bits: int = 16
    """Bits per stored element; 16 keeps the model dtype (bfloat16 or float32)."""
    sparse_decode: bool = True
    """Sparse heads attend to sinks and local window while decoding too; False gives every head the whole past,
    as the released code of Elastic Attention does."""

    def __post_init__(self) -> None:
        if self.bits != 16:
            raise ConfigError(f"cache bits is {self.bits}; only 16 is available in this version. Use bits=16.")
