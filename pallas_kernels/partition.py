"""Lets `jit` divide an op over the devices of a mesh, by batch and by KV heads.

XLA cannot look into a kernel, nor divide a loop over heads: left alone it gathers every operand on every device. An op
wrapped by `divided` names the axes of its arrays by letters instead, and each device runs it on its own rows and heads.

`shard_map` would need the mesh and the shardings while the op is traced. `jit` knows them only when it compiles, so
JAX's `custom_partitioning` asks then, twice. First Shardy, which decides about shardings, wants a rule in the form of
an einsum: equal factors are divided alike, and factors listed as needing replication stay whole. Then `partition` gets
the shardings that were decided, and returns the ones that it wants and the function that each device runs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.experimental.custom_partitioning import custom_partitioning
from jax.sharding import Mesh, NamedSharding, PartitionSpec

FACTORS = {"B": "rows", "K": "heads", "N": "heads"}
"""What is divided along an axis, by its letter; query heads go with their KV head."""


def divided[R](function: Callable[..., R], operands: Any, results: Any) -> Callable[..., R]:
    """`function`, whose rows and KV heads are independent of each other, as an op that `jit` can divide.

    On one device this is `function`. On several, each calls it with its own rows and heads of every operand; their
    other axes are gathered first. It has no gradient, so it must be used inside the rules of a `custom_vjp`.

    Args:
        function: takes arrays, or trees of them, by position; what it does must follow from their shapes.
        operands: letters of the axes of each array, such as "BTNH", as a tree prefix of the arguments: B the rows, K
            the KV heads, N the query heads (those of a KV head side by side). Any other letter names an axis that
            stays whole; so do axes left out at the end.
        results: the same for what `function` returns.
    """

    def letters_of(arguments: tuple[Any, ...], outputs: R) -> tuple[list[str], Any]:
        """Letters of every array, arguments before outputs, and the tree that they came from."""
        return jax.tree.flatten(jax.tree.broadcast((operands, results), (arguments, outputs)))

    def partition(mesh: Mesh, arguments: tuple[Any, ...], outputs: R):
        """Shardings of all arrays on this mesh, from the shardings that the compiler proposes."""
        letters, tree = letters_of(arguments, outputs)
        arrays = jax.tree.leaves((arguments, outputs))
        axes = {factor: _mesh_axes(mesh, factor, letters, arrays) for factor in FACTORS.values()}
        specs = [PartitionSpec(*(axes.get(FACTORS.get(x, "")) for x in word)) for word in letters]
        of_arguments, of_outputs = jax.tree.unflatten(tree, [NamedSharding(mesh, spec) for spec in specs])
        return mesh, function, of_outputs, of_arguments

    def call(*arguments: Any) -> R:
        shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), arguments)

        def rule(*_: Any) -> tuple[str, dict[str, Any]]:
            outputs = jax.eval_shape(function, *shapes)
            sizes = [x.shape for x in jax.tree.leaves((shapes, outputs))]
            return sharding_rule(letters_of(shapes, outputs)[0], sizes, len(jax.tree.leaves(shapes)))

        op = custom_partitioning(lambda *operands: function(*operands))  # a partial with keywords is refused
        op.def_partition(partition, sharding_rule=rule)
        return op(*arguments)

    return call


def sharding_rule(
    letters: Sequence[str], shapes: Sequence[tuple[int, ...]], operands: int
) -> tuple[str, dict[str, Any]]:
    """Shardy's rule for an op: `rows whole0 (heads group), ... -> ...`, and its options.

    Query heads are two factors, the KV heads and the `group` that shares one, of which only the first is divided.

    Args:
        letters: those of every array, operands before results.
        shapes: their shapes; axes beyond the letters stay whole.
        operands: how many of the arrays are operands.
    """
    sizes = {x: n for word, shape in zip(letters, shapes, strict=True) for x, n in zip(word, shape, strict=False)}
    groups = sizes.get("N", 0) // sizes["K"]
    whole: list[str] = []

    def factor(letter: str) -> str:
        if letter == "N" and groups > 1:
            if "group" not in whole:
                whole.append("group")
            return "(heads group)"
        if letter in FACTORS:
            return FACTORS[letter]
        # A name of its own for every axis: axes that stay whole need not be equal.
        whole.append(f"whole{len(whole)}")
        return whole[-1]

    arrays = [" ".join(map(factor, word.ljust(len(shape)))) for word, shape in zip(letters, shapes, strict=True)]
    rule = f"{', '.join(arrays[:operands])} -> {', '.join(arrays[operands:])}"
    return rule, {"need_replication_factors": tuple(whole)} | ({"group": groups} if "group" in whole else {})


def _mesh_axes(mesh: Mesh, factor: str, letters: Sequence[str], arrays: Sequence[Any]) -> tuple[str, ...]:
    """Axes of the mesh by which a factor is divided, the same for all arrays.

    They are those of the first array that is divided along it, as many as divide the smallest size of the factor (of
    KV heads and query heads, the KV heads). An array whose sharding names no axes counts as undivided: outside `jit`
    the compiler proposes such ones for results.
    """
    along = [
        (array.shape[i], array.sharding.spec[i] if isinstance(array.sharding, NamedSharding) else None)
        for word, array in zip(letters, arrays, strict=True)
        for i, axis in enumerate(word)
        if FACTORS.get(axis) == factor
    ]
    size = min(size for size, _ in along)
    for _, names in along:
        if names is not None:
            names = (names,) if isinstance(names, str) else names
            fitting = (i for i in range(len(names) + 1) if size % math.prod(mesh.shape[n] for n in names[:i]) == 0)
            return tuple(names[: max(fitting)])
    return ()
