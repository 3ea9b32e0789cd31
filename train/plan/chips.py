"""What accelerators have, and how many of them a name such as `v5p:4x4x4` or `a100:8` means."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from elastic_jax.errors import ConfigError

GIB = 2**30


@dataclass(frozen=True)
class Chip:
    """One device as JAX counts them. Rates as the makers state them."""

    memory: float
    """GiB of device memory that a program may use: for TPUs what the compiler allows, for GPUs 92 %."""
    host: float
    """GiB of host memory for each device, of the usual machine type."""
    flops: float
    """Dense bfloat16 FLOP/s."""
    links: float
    """Bytes/s to the neighbours, all links together."""
    attention: float
    """Share of `flops` that attention reaches: for TPUs from the compiler's cycle count of our kernel, 8,192 tokens and
    head dim 128; 0.5 for GPUs, a guess."""
    kind: str = ""
    """What a TPU calls itself; empty for a GPU."""
    dims: int = 1
    """Numbers in a topology."""
    per_chip: int = 1
    """Devices in one chip."""


CHIPS = {
    "v4": Chip(30.5, 101, 275e12, 300e9, 0.35, "TPU v4", 3),
    "v5e": Chip(15.75, 48, 197e12, 200e9, 0.58, "TPU v5 lite", 2),
    "v5p": Chip(95.73, 112, 459e12, 600e9, 0.30, "TPU v5", 3),
    "v6e": Chip(31.24, 180, 918e12, 448e9, 0.23, "TPU v6 lite", 2),
    "tpu7x": Chip(94.74, 120, 1153e12, 600e9, 0.23, "TPU7x", 3, 2),
    "a100": Chip(72.8, 170, 312e12, 600e9, 0.5),
    "h100": Chip(73.2, 234, 989e12, 900e9, 0.5),
}
HOST_LINK = 16e9
"""Bytes/s between a device and its host, each way: PCIe of the fourth generation at half its rate. A guess."""
MATMUL_SHARE = 0.6
"""Share of the peak that large matrix products reach, of a step without communication. A guess."""


@dataclass(frozen=True)
class Topology:
    """A slice of TPUs, or some GPUs."""

    name: str
    chip: Chip
    shape: tuple[int, ...]

    @property
    def generation(self) -> str:
        return self.name.partition(":")[0]

    @property
    def chips(self) -> int:
        return math.prod(self.shape)

    @property
    def devices(self) -> int:
        return self.chips * self.chip.per_chip


def parse_topology(name: str) -> Topology:
    """The topology of a name: generation and chips along each axis of the torus, or a number of GPUs.

    Raises:
        ConfigError: an unknown generation, or not as many numbers as it has axes.
    """
    match = re.fullmatch(r"(\w+):(\d+(?:x\d+)*)", name)
    if match is None or match[1] not in CHIPS:
        raise ConfigError(
            f"topology {name!r}: want GENERATION:SIZES, such as v5p:4x4x4, v6e:8x8 or a100:8. "
            f"Generations: {', '.join(CHIPS)}."
        )
    chip, shape = CHIPS[match[1]], tuple(map(int, match[2].split("x")))
    if len(shape) != chip.dims or min(shape) < 1:
        raise ConfigError(f"topology {name!r}: {match[1]} has {chip.dims} sizes of 1 or more, got {match[2]}.")
    return Topology(name, chip, shape)
