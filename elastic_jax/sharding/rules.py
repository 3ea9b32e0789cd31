"""One table of rules that divides parameters and batches over the mesh.

Weights are stored divided over `fsdp` and `context` together and gathered where they are used, layer by layer.
Everything here takes an `AbstractMesh` too, so that a plan needs no devices. Importing this module does not import jax.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from elastic_jax.errors import ConfigError
from elastic_jax.sharding.mesh import ROWS, WEIGHTS, axis_sizes, listed

if TYPE_CHECKING:
    import jax
    from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

    AnyMesh = Mesh | AbstractMesh

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
    "layers.mlp.gate_proj.bias": "LF",
    "layers.mlp.up_proj.bias": "LF",
    "layers.mlp.down_proj.kernel": "LFD",
}
"""Letters of the dimensions of every parameter that is divided (scales are those of int8 kernels); all others (norms,
routers, multipliers, score heads, adapters) are replicated."""


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
                    f"{path} {list(shape)}: a dimension of {size} cannot be divided by {axis_sizes(wanted, mesh)}. "
                    "Choose sizes of these mesh axes that divide it."
                )
            instead = f"by {' x '.join(taken)} only" if taken else _MAY_STAY_WHOLE[letter]
            notes.append(f"{size} by {axis_sizes(wanted, mesh)}: {instead}")
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
    lines = [f"mesh {listed(dict(mesh.shape))}: {math.prod(mesh.shape.values())} devices"]
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
