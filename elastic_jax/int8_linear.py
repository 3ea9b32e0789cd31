"""Linear maps of frozen layers with int8 kernels: half the memory of bfloat16, for a rounding error.

Symmetric, one scale for each output channel of each layer: the largest weight of a channel becomes 127. Kernels are
int8 in memory and between devices; each use converts one of one layer.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh

from elastic_jax.errors import ConfigError
from elastic_jax.layers import INPUT_RANKS, Linear, aligned
from elastic_jax.sharding.rules import param_shardings

LARGEST = 127


class Int8Linear(nnx.Module):
    """`y = (x · kernel) * scale + bias`, differentiable in x; the small integers are exact in bfloat16 and float32."""

    def __init__(self, base: Linear, kernel: Any, scale: Any):
        self.kernel, self.scale = nnx.Param(kernel), nnx.Param(scale)
        self.bias = base.bias
        self.input_rank = base.input_rank

    def __call__(self, x: jax.Array) -> jax.Array:
        y = _product(x, self.kernel[...], self.scale[...], self.input_rank)
        return y if self.bias is None else y + aligned(self.bias[...], y)


# Recomputed: a scan over layers would else keep every converted kernel for the backward pass.
@partial(jax.checkpoint, prevent_cse=False, static_argnums=3)
def _product(x: jax.Array, kernel: jax.Array, scale: jax.Array, input_rank: int) -> jax.Array:
    y = jnp.tensordot(x, kernel.astype(x.dtype), axes=input_rank)
    return y * aligned(scale, y)


def int8_kernel(kernel: jax.Array, input_rank: int) -> tuple[jax.Array, jax.Array]:
    """A kernel `[L, *inputs, *outputs]` as int8, and its scale `[L, *outputs]` in the kernel's dtype.

    kernel - int8 * scale is at most scale / 2 in size; a channel of zeros has scale 1.
    """
    inputs = tuple(range(1, 1 + input_rank))
    kernel32, kind = kernel.astype(jnp.float32), jnp.finfo(kernel.dtype)
    scale = jnp.abs(kernel32).max(inputs, keepdims=True) / LARGEST
    # An op of its own, since compilers may skip a conversion there and back: divided is by what is stored.
    scale = jax.lax.reduce_precision(jnp.where(scale == 0, 1.0, scale), kind.nexp, kind.nmant)
    rounded = jnp.clip(jnp.round(kernel32 / scale), -LARGEST, LARGEST)
    return rounded.astype(jnp.int8), scale.squeeze(inputs).astype(kernel.dtype)


def int8_maps(params: Mapping[str, Any]) -> list[str]:
    """The maps of the layers, as `INPUT_RANKS` names them, whose kernels are int8."""
    kernels = {name: params.get(_paths(name)[0]) for name in INPUT_RANKS}
    return [name for name, kernel in kernels.items() if getattr(kernel, "dtype", None) == jnp.int8]


def int8_shapes(shapes: Mapping[str, Any], maps: Iterable[str] = INPUT_RANKS) -> dict[str, Any]:
    """Shapes of parameters by dotted path once the kernels of some maps are int8, their scales with them.

    Maps that the model does not have are passed over.
    """
    changed = dict(shapes)
    for name in maps:
        if _paths(name)[0] not in changed:
            continue
        kernel, scale = _paths(name)
        rounded = jax.eval_shape(partial(int8_kernel, input_rank=INPUT_RANKS[name]), changed[kernel])
        changed |= dict(zip((kernel, scale), rounded, strict=True))
    return changed


def join_int8(model: nnx.Module, name: str, kernel: Any, scale: Any) -> None:
    """Gives a map of the layers an int8 kernel; the model is changed in place."""
    parent, child = _parts(model, name)
    setattr(parent, child, Int8Linear(getattr(parent, child), kernel, scale))


def quantize_layers(model: nnx.Module) -> None:
    """Makes the kernels of all layers int8, one after the other and where they are; the model is changed in place.

    Each kernel is freed when its int8 form is there, unless something else holds it. Maps that are int8 stay.
    """
    for name, input_rank in INPUT_RANKS.items():
        parent, child = _parts(model, name)
        linear = getattr(parent, child)
        if linear is None or isinstance(linear, Int8Linear):
            continue
        kernel, places = linear.kernel[...], None
        if kernel.dtype == jnp.float16:
            raise ConfigError("int8 layers need a model in bfloat16 or float32: in float16 their products overflow.")
        mesh = getattr(kernel.sharding, "mesh", None)
        if isinstance(mesh, Mesh):
            by_path = param_shardings(int8_shapes({_paths(name)[0]: kernel}, [name]), mesh)
            places = tuple(by_path[path] for path in _paths(name))
        convert = jax.jit(partial(int8_kernel, input_rank=input_rank), out_shardings=places)
        join_int8(model, name, *jax.block_until_ready(convert(kernel)))


def _paths(name: str) -> tuple[str, str]:
    return f"layers.{name}.kernel", f"layers.{name}.scale"


def _parts(model: nnx.Module, name: str) -> tuple[nnx.Module, str]:
    """The module of a decoder's stacked layers that holds the map, and its name there."""
    parent, child = name.split(".")
    layers = getattr(model, "layers")  # noqa: B009
    return getattr(layers, parent), child
