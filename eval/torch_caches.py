"""The caches of `transformers`, filled and timed under another Python."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from eval.torch_process import threads, torch_process


class TorchCaches(NamedTuple):
    """What that process has."""

    bytes_by_kind: dict[str, int]
    missing: dict[str, str]
    """Why a kind of cache is not there."""
    seconds: Callable[[str], float]
    """Times one decode step of a kind."""


@contextmanager
def torch_caches(python: str, model: Path, *, dtype: str, rows: int, tokens: int, steps: int) -> Iterator[TorchCaches]:
    """Starts `python` with the Hugging Face model in folder `model` and caches of `rows` rows of `tokens` tokens.

    Raises:
        ConfigError: that Python cannot run it; from the function too.
    """
    job = {
        "model": str(model), "dtype": dtype, "rows": rows, "tokens": tokens, "steps": steps, "threads": threads()
    }  # fmt: skip
    with torch_process(python, "torch_cache.py") as ask:
        found = ask(job)
        there = {kind: size for kind, size in found.items() if isinstance(size, int)}
        missing = {kind: reason for kind, reason in found.items() if kind not in there}
        yield TorchCaches(there, missing, ask)
