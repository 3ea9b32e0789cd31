"""Functions of a model, compiled once for all models of one configuration and dtype."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
from flax import nnx


class model_program[**P, R]:  # noqa: N801, used as a decorator
    """`function(model, ...)` compiled once for all models of one configuration and dtype.

    `nnx.jit` would compile again for a checkpoint in another directory, and would hand the configuration of the first
    model, with its end-of-sequence ids, to every later one. Here the model is read only.
    """

    def __init__(self, function: Callable[P, R], *, static: tuple[str, ...] = (), donate: tuple[int, ...] = ()):
        """`static` names arguments that are part of the program, which are given by name.

        `donate` has the positions of arguments whose memory the results may take, the model not counted.
        """

        def run(graph: nnx.GraphDef[Any], params: nnx.State, *arguments: Any, **options: Any) -> Any:
            return function(nnx.merge(graph, params), *arguments, **options)  # pyrefly: ignore

        run.__name__ = getattr(function, "__name__", "run")
        places = tuple(place + 2 for place in donate)
        self._run = jax.jit(run, static_argnums=0, static_argnames=static, donate_argnums=places)

    def __call__(self, *arguments: P.args, **options: P.kwargs) -> R:
        model, *rest = arguments
        return self._run(*nnx.split(model.without_source()), *rest, **options)  # pyrefly: ignore

    def lower(self, *arguments: P.args, **options: P.kwargs) -> Any:
        """The program for these arguments before it is compiled, as `jax.jit(...).lower` gives it."""
        model, *rest = arguments
        return self._run.lower(*nnx.split(model.without_source()), *rest, **options)  # pyrefly: ignore
