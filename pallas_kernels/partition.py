"""Lets `jit` divide an op over the devices of a mesh, by batch and by KV heads.

XLA cannot look into a kernel, nor divide a loop over heads: left alone it gathers every operand on every device. Here
an op names the axes of its arrays, and each device runs it on the rows and the heads that it has.
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
    """`function`, for which rows and KV heads have nothing to do with each other, as an op that `jit` can divide.

    On one device this is `function`. On several, each calls it with its own rows and heads of every operand, whose
    other axes are made whole before. Nothing differentiates through it: it belongs into the rules of a `custom_vjp`.

    Args:
        function: takes arrays, or trees of them, by position; what it does must follow from their shapes.
        operands: letters of the axes of each array, such as "BTNH", as a tree prefix of the arguments: B the rows, K
            the KV heads, N the query heads (those of a KV head side by side). Any other letter names an axis that
            stays whole; so do axes left out at the end.
        results: the same for what `function` returns.
    """

    def words(taken: tuple[Any, ...], given: R) -> tuple[list[str], Any]:
        return jax.tree.flatten(jax.tree.broadcast((operands, results), (taken, given)))

    def partition(mesh: Mesh, taken: tuple[Any, ...], given: R):
        letters, tree = words(taken, given)
        arrays = jax.tree.leaves((taken, given))
        axes = {factor: _mesh_axes(mesh, factor, letters, arrays) for factor in FACTORS.values()}
        specs = [PartitionSpec(*(axes.get(FACTORS.get(x, "")) for x in word)) for word in letters]
        of_taken, of_given = jax.tree.unflatten(tree, [NamedSharding(mesh, spec) for spec in specs])
        return mesh, function, of_given, of_taken

    def call(*arguments: Any) -> R:
        taken = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), arguments)

        def rule(*_: Any) -> tuple[str, dict[str, Any]]:
            given = jax.eval_shape(function, *taken)
            shapes = [x.shape for x in jax.tree.leaves((taken, given))]
            return sharding_rule(words(taken, given)[0], shapes, len(jax.tree.leaves(taken)))

        op = custom_partitioning(lambda *operands: function(*operands))  # which takes no partial with keywords
        op.def_partition(partition, sharding_rule=rule)
        return op(*arguments)

    return call


def sharding_rule(
    letters: Sequence[str], shapes: Sequence[tuple[int, ...]], operands: int
) -> tuple[str, dict[str, Any]]:
    """What Shardy is told of an op of so many operands: a rule as einsum has it, and the axes that must stay whole."""
    sizes = {x: n for word, shape in zip(letters, shapes, strict=True) for x, n in zip(word, shape, strict=False)}
    groups = sizes.get("N", 0) // sizes["K"]
    whole: list[str] = []

    def axis(letter: str) -> str:
        if letter == "N" and groups > 1:
            if "group" not in whole:
                whole.append("group")
            return "(heads group)"
        if letter in FACTORS:
            return FACTORS[letter]
        whole.append(f"whole{len(whole)}")
        return whole[-1]

    arrays = [" ".join(map(axis, word.ljust(len(shape)))) for word, shape in zip(letters, shapes, strict=True)]
    rule = f"{', '.join(arrays[:operands])} -> {', '.join(arrays[operands:])}"
    return rule, {"need_replication_factors": tuple(whole)} | ({"group": groups} if "group" in whole else {})


def _mesh_axes(mesh: Mesh, factor: str, letters: Sequence[str], arrays: Sequence[Any]) -> tuple[str, ...]:
    """Axes of the mesh by which a factor is divided: those of the first array divided along it, as far as they fit."""
    along = [
        (array.shape[i], array.sharding.spec[i])
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
