"""Choice of the implementation of an op. A named implementation never falls back to another."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import jax

PLANNED = ("triton", "mosaic_gpu")


def choose[F: Callable](op: str, impl: str, implementations: Mapping[str, F]) -> F:
    """Returns the implementation of `op` that `impl` names; "auto" takes the best one for the default platform.

    Raises:
        ValueError: `impl` is no known name.
        NotImplementedError: the name is known but `op` has no such implementation.
    """
    if impl == "auto":
        return implementations.get(jax.default_backend(), implementations["xla"])
    if impl in implementations:
        return implementations[impl]
    have = ", ".join(("auto", *implementations))
    if impl in PLANNED:
        raise NotImplementedError(f"{op} has no {impl!r} implementation yet. Use one of: {have}.")
    raise ValueError(f"{op}: unknown impl {impl!r}. Use one of: {have}.")
