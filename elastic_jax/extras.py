"""Checkpoint tensors that are no parameters of the model but must survive a round trip."""

from __future__ import annotations

import numpy as np


class Extras(dict[str, np.ndarray]):
    """Tensors by checkpoint name, such as the λ of an Elastic Attention checkpoint.

    Compared by identity, so that a model that carries them stays a valid (hashable) static argument of `jit`.
    """

    def __hash__(self) -> int:  # pyrefly: ignore[bad-override]
        return id(self)

    def __eq__(self, other: object) -> bool:
        return self is other
