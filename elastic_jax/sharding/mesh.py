"""The mesh of devices: its axes, its settings, and how it is made.

`data` and `fsdp` divide rows, `tensor` divides heads, MLP width and vocabulary, `context` divides the tokens of a row.
Importing this module does not import jax: settings classes need `MeshConfig`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

from elastic_jax.errors import ConfigError

if TYPE_CHECKING:
    import jax
    from jax.sharding import AbstractMesh, Mesh

    AnyMesh = Mesh | AbstractMesh


AXES = ("data", "fsdp", "tensor", "context")
ROWS = ("data", "fsdp")
"""Mesh axes over which the rows of a batch are divided."""
WEIGHTS = ("fsdp", "context")
"""Mesh axes over which the model width of a weight is divided."""


@dataclass(frozen=True)
class MeshConfig:
    """How devices are arranged: the product of the axes is their number."""

    data: int = 1
    """Groups of devices that share no weights and work on rows of their own; -1: whatever the other axes leave."""
    fsdp: int = 1
    """Devices that divide weights and work on rows of their own; -1: whatever the other axes leave."""
    tensor: int = 1
    """Devices that divide the heads, the MLP and the vocabulary among them."""
    context: int = 1
    """Devices that divide the tokens of each row (and the weights)."""
    slices: int = 1
    """TPU slices (or groups of hosts) joined by the data-centre network; divides data or, where that is 1, fsdp."""

    def __post_init__(self) -> None:
        values = self.given()
        if any(n < 1 and n != -1 for n in values.values()) or list(values.values()).count(-1) > 1 or self.slices < 1:
            raise ConfigError(
                f"mesh axes {listed(values)}, slices {self.slices}: want 1 or more, and -1 for at most one axis."
            )

    def given(self) -> dict[str, int]:
        """Size of each axis as set."""
        return {field.name: getattr(self, field.name) for field in fields(self) if field.name in AXES}

    def sizes(self, devices: int) -> dict[str, int]:
        """Size of each axis on so many devices, -1 replaced.

        Raises:
            ConfigError: the axes do not multiply to the number of devices, or the slices divide no outer axis.
        """
        given = self.given()
        fixed = math.prod(n for n in given.values() if n > 0)
        values = {axis: devices // fixed if n == -1 else n for axis, n in given.items()}
        if math.prod(values.values()) != devices:
            raise ConfigError(
                f"a mesh of {listed(given)} does not arrange {devices} devices: the product must be {devices}. "
                "Set one axis to -1 to give it what the others leave."
            )
        if values[self._outermost(values)] % self.slices:
            raise ConfigError(
                f"{self.slices} slices divide neither data ({values['data']}) nor, with data 1, fsdp "
                f"({values['fsdp']}). Only these axes may cross slices."
            )
        return values

    def _outermost(self, sizes: Mapping[str, int]) -> str:
        return "data" if sizes["data"] > 1 else "fsdp"

    def divided_by_slices(self, sizes: Mapping[str, int]) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """(sizes inside a slice, sizes across slices), in the order of `AXES`."""
        across = {axis: self.slices if axis == self._outermost(sizes) else 1 for axis in AXES}
        return tuple(sizes[axis] // across[axis] for axis in AXES), tuple(across.values())


def make_mesh(config: MeshConfig, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """The mesh of `config` over `devices` (default: all), arranged so that inner axes have the shortest ways.

    Raises:
        ConfigError: the axes do not fit the number of devices, or `slices` is not how many slices these form.
    """
    import jax
    from jax.experimental import mesh_utils
    from jax.sharding import AxisType, Mesh

    chosen = jax.devices() if devices is None else list(devices)
    sizes = config.sizes(len(chosen))
    found = {getattr(device, "slice_index", 0) for device in chosen}
    if len(found) != config.slices and (config.slices > 1 or chosen[0].platform == "tpu"):
        raise ConfigError(f"mesh slices is {config.slices}; these {len(chosen)} devices form {len(found)}.")
    if config.slices > 1:
        inside, across = config.divided_by_slices(sizes)
        arranged = mesh_utils.create_hybrid_device_mesh(inside, across, chosen, allow_split_physical_axes=True)
    else:
        arranged = mesh_utils.create_device_mesh(tuple(sizes.values()), chosen, allow_split_physical_axes=True)
    return Mesh(arranged, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def axis_sizes(axes: Sequence[str], mesh: AnyMesh) -> str:
    return " x ".join(f"{axis} {mesh.shape[axis]}" for axis in axes)


def listed(values: Mapping[str, int]) -> str:
    return ", ".join(f"{axis} {n}" for axis, n in values.items())
