"""Where arrays are: one mesh of devices, one table of rules that divides parameters and batches over it.

Axes of the mesh: `data` and `fsdp` divide rows, `tensor` divides heads, MLP width and vocabulary, `context` divides the
tokens of a row. Weights are stored divided over `fsdp` and `context` together and gathered where they are used, layer
by layer. Everything here but `make_mesh` takes an `AbstractMesh` too, so that a plan needs no devices. Importing this
module does not import jax: settings classes need `MeshConfig`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, NamedTuple

from elastic_jax.errors import ConfigError

if TYPE_CHECKING:
    import jax
    from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

    AnyMesh = Mesh | AbstractMesh

AXES = ("data", "fsdp", "tensor", "context")
ROWS = ("data", "fsdp")
"""Mesh axes over which the rows of a batch are divided."""
WEIGHTS = ("fsdp", "context")
"""Mesh axes over which the model width of a weight is divided."""

_DIVIDED = {"D": WEIGHTS, "N": ("tensor",), "K": ("tensor",), "F": ("tensor",), "V": ("tensor",)}
"""Mesh axes of a dimension, by its letter: model width, query heads, KV heads, MLP width, vocabulary."""
_MAY_STAY_WHOLE = {
    "K": "K/V projections are replicated over tensor; attention repeats their heads for its devices",
    "V": "the vocabulary is not divided",
}
_RULES = {
    "embed.embedding": "VD",
    "lm_head.kernel": "DV",
    "layers.attn.q_proj.kernel": "LDNH",
    "layers.attn.k_proj.kernel": "LDKH",
    "layers.attn.v_proj.kernel": "LDKH",
    "layers.attn.o_proj.kernel": "LNHD",
    "layers.attn.q_proj.bias": "LNH",
    "layers.attn.k_proj.bias": "LKH",
    "layers.attn.v_proj.bias": "LKH",
    "layers.attn.q_proj.scale": "LNH",
    "layers.attn.k_proj.scale": "LKH",
    "layers.attn.v_proj.scale": "LKH",
    "layers.mlp.gate_proj.kernel": "LDF",
    "layers.mlp.up_proj.kernel": "LDF",
    "layers.mlp.gate_proj.scale": "LF",
    "layers.mlp.up_proj.scale": "LF",
    "layers.mlp.down_proj.kernel": "LFD",
}
"""Letters of the dimensions of every parameter that is divided (scales are those of int8 kernels); all others (norms,
routers, multipliers, score heads, adapters) are replicated."""


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
                f"mesh axes {_listed(values)}, slices {self.slices}: want 1 or more, and -1 for at most one axis."
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
                f"a mesh of {_listed(given)} does not arrange {devices} devices: the product must be {devices}. "
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


class Placement(NamedTuple):
    """How one parameter is divided, and why not further where a rule could not be followed."""

    spec: PartitionSpec
    note: str = ""


def place(path: str, shape: Sequence[int], mesh: AnyMesh) -> Placement:
    """What the rules say of one parameter, by its dotted path.

    Raises:
        ConfigError: a dimension that the mesh cannot divide and that must not stay whole, or a mesh axis wanted twice.
    """
    from jax.sharding import PartitionSpec

    letters, notes, axes = _RULES.get(path, ""), [], []
    for letter, size in zip(letters.ljust(len(shape)), shape, strict=True):
        wanted = tuple(axis for axis in _DIVIDED.get(letter, ()) if mesh.shape.get(axis, 1) > 1)
        taken = _that_divide(size, wanted, mesh)
        if taken != wanted:
            if not taken and letter not in _MAY_STAY_WHOLE:
                raise ConfigError(
                    f"{path} {list(shape)}: a dimension of {size} cannot be divided by {_sizes(wanted, mesh)}. "
                    "Choose sizes of these mesh axes that divide it."
                )
            instead = f"by {' x '.join(taken)} only" if taken else _MAY_STAY_WHOLE[letter]
            notes.append(f"{size} by {_sizes(wanted, mesh)}: {instead}")
        axes.append(taken)
    used = [axis for taken in axes for axis in taken]
    twice = sorted({axis for axis in used if used.count(axis) > 1})
    if twice:
        raise ConfigError(f"{path} {list(shape)}: mesh axis {', '.join(twice)} divides two dimensions ({letters}).")
    return Placement(_spec(axes, PartitionSpec), "; ".join(notes))


def param_specs(shapes: Mapping[str, Any], mesh: AnyMesh) -> dict[str, PartitionSpec]:
    """How each parameter is divided, by dotted path; `shapes` are arrays or anything with a `shape`.

    Raises:
        ConfigError: as for `place`; all parameters that do not fit are listed.
    """
    return {path: placement.spec for path, placement in _placements(shapes, mesh).items()}


def param_shardings(shapes: Mapping[str, Any], mesh: Mesh) -> dict[str, NamedSharding]:
    """`param_specs` on the devices of a mesh."""
    from jax.sharding import NamedSharding

    return {path: NamedSharding(mesh, spec) for path, spec in param_specs(shapes, mesh).items()}


def batch_sharding(mesh: Mesh, *, leading: int = 0, tokens: bool = True) -> NamedSharding:
    """Rows over data and fsdp, tokens over context.

    Args:
        leading: axes before the rows, which stay whole (accumulation).
        tokens: whether the axis after the rows holds tokens; False for one number, or a few, for each row.
    """
    from jax.sharding import NamedSharding, PartitionSpec

    axes = [()] * leading + [ROWS, ("context",) if tokens else ()]
    present = [tuple(axis for axis in names if mesh.shape.get(axis, 1) > 1) for names in axes]
    return NamedSharding(mesh, _spec(present, PartitionSpec))


def divide_tokens(x: jax.Array) -> jax.Array:
    """Holds an array `[rows, tokens, ...]` to the places of a batch on the mesh in use, the other axes whole.

    Without it the compiler may follow the weights instead and divide the model width. Without a mesh, `x` itself.
    """
    import jax

    spec = token_spec(x.shape)
    return x if not any(spec) else jax.lax.with_sharding_constraint(x, spec)


def token_spec(shape: Sequence[int]) -> PartitionSpec:
    """How an array `[rows, tokens, ...]` is divided over the mesh in use, by the axes that divide it."""
    import jax
    from jax.sharding import PartitionSpec

    mesh = jax.sharding.get_abstract_mesh()
    present = [tuple(axis for axis in names if mesh.shape.get(axis, 1) > 1) for names in (ROWS, ("context",))]
    divided = [_that_divide(size, names, mesh) for size, names in zip(shape, present, strict=False)]
    return _spec(divided, PartitionSpec)


def replicated(mesh: Mesh) -> NamedSharding:
    """The whole array on every device."""
    from jax.sharding import NamedSharding, PartitionSpec

    return NamedSharding(mesh, PartitionSpec())


def device_bytes(shapes: Mapping[str, Any], mesh: AnyMesh) -> dict[str, int]:
    """Bytes of each parameter on one device."""
    specs = param_specs(shapes, mesh)
    return {path: array_bytes(array) // shards(specs[path], mesh) for path, array in shapes.items()}


def array_bytes(array: Any) -> int:
    """Bytes of a whole array, or of what a shape and a type would hold."""
    return math.prod(array.shape) * array.dtype.itemsize


def shards(spec: PartitionSpec, mesh: AnyMesh) -> int:
    """Into how many different parts a spec divides an array."""
    return math.prod(mesh.shape[axis] for axis in _axes_of(spec))


def explain(shapes: Mapping[str, Any], mesh: AnyMesh) -> str:
    """A table: where each parameter goes, its bytes on one device, and what could not be divided as the rules say."""
    placements = _placements(shapes, mesh)
    each = device_bytes(shapes, mesh)
    lines = [f"mesh {_listed(dict(mesh.shape))}: {math.prod(mesh.shape.values())} devices"]
    width = max(map(len, shapes))
    for path, array in shapes.items():
        spec, note = placements[path]
        where = " ".join(str(axes) if axes else "-" for axes in spec) if _axes_of(spec) else "replicated"
        where = where.replace("'", "")
        lines.append(f"  {path:<{width}}  {list(array.shape)!s:<22} {where:<32} {each[path] / 2**20:12,.2f} MiB")
        if note:
            lines.append(f"  {'':<{width}}  ! {note}")
    whole = sum(map(array_bytes, shapes.values()))
    lines.append(f"  {sum(each.values()) / 2**30:.3f} GiB on each device, {whole / 2**30:.3f} GiB in all")
    return "\n".join(lines)


def _placements(shapes: Mapping[str, Any], mesh: AnyMesh) -> dict[str, Placement]:
    placements, problems = {}, []
    for path, array in shapes.items():
        try:
            placements[path] = place(path, array.shape, mesh)
        except ConfigError as error:
            problems.append(str(error))
    if problems:
        raise ConfigError("the parameters do not fit the mesh:\n  " + "\n  ".join(problems))
    return placements


def _that_divide(size: int, axes: tuple[str, ...], mesh: AnyMesh) -> tuple[str, ...]:
    """The longest run of leading axes whose sizes together divide `size`."""
    fitting = (i for i in range(len(axes) + 1) if size % math.prod(mesh.shape[axis] for axis in axes[:i]) == 0)
    return axes[: max(fitting)]


def _spec(axes: Sequence[tuple[str, ...]], cls: type[PartitionSpec]) -> PartitionSpec:
    entries = [names if len(names) > 1 else names[0] if names else None for names in axes]
    while entries and entries[-1] is None:
        entries.pop()
    return cls(*entries)


def _axes_of(spec: PartitionSpec) -> list[str]:
    return [axis for entry in spec if entry is not None for axis in ((entry,) if isinstance(entry, str) else entry)]


def _sizes(axes: Sequence[str], mesh: AnyMesh) -> str:
    return " x ".join(f"{axis} {mesh.shape[axis]}" for axis in axes)


def _listed(values: Mapping[str, int]) -> str:
    return ", ".join(f"{axis} {n}" for axis, n in values.items())
