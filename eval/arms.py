"""The arms of a comparison: ways of running the same weights on the same prompts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

View = Literal["full", "sparse", "elastic"]
VIEWS: tuple[View, ...] = get_args(View)


@dataclass(frozen=True)
class Arm:
    """How attention and cache run. An endpoint has one arm, whose settings but the name mean nothing."""

    name: str
    """Shown in reports and part of every journal key."""
    view: View = "full"
    """Every head full, every head sparse, or each as its router decides."""
    router_bias: float = 0.0
    """Added to logit_full - logit_sparse of an elastic arm."""
    cache_bits: int = 16
    modes_LK: tuple[tuple[int, ...], ...] | None = None
    """Imposed head modes (0 full, 1 sparse) by layer and KV head, instead of the view."""


ENDPOINT_ARM = Arm("endpoint")
