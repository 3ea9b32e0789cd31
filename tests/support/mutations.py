"""Damaged copies of valid files, the same for the same seed, and the promise that every parser keeps on them."""

from __future__ import annotations

import copy
import json
import math
import random
import resource
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from elastic_jax.errors import ElasticError

SECONDS = 5
"""Of processor time; longer than any parser takes by far: what this stops hangs."""
BYTES = 512 * 2**20
ODD_VALUES: list[Any] = [
    *(None, True, False, 0, 1, -1, 3, 2**31, 2**63, 10**30, 0.5, -0.0, 1e308, math.nan, math.inf),
    *("", "a", "\u2028", "\0", "../../outside", "/etc/passwd", "full", "9" * 5000, "é" * 300),
    *([], [[]], [None], [1, "a"], {}, {"": {}}, {"a": [1]}, [1e30] * 50),
]
EXTREME_WORDS = [0, 1, 0x7F, 0xFF, 2**31 - 1, 2**32 - 1, 2**40, 2**63 - 1, 2**64 - 1]


class Hang(BaseException):
    """A parser took longer than any may; no `except Exception` swallows it."""


def mutate_json(value: Any, rng: random.Random) -> Any:
    """A copy with one to three places replaced, removed, renamed, repeated or buried."""
    value = json.loads(json.dumps(value))
    for _ in range(rng.choice((1, 1, 2, 3))):
        parents = [node for node in _nodes(value) if isinstance(node, dict | list) and node]
        if not parents:
            return rng.choice(ODD_VALUES)
        parent = rng.choice(parents)
        key = rng.choice(list(parent) if isinstance(parent, dict) else range(len(parent)))
        action = rng.randrange(6)
        if action <= 2:
            parent[key] = copy.deepcopy(rng.choice(ODD_VALUES))
        elif action == 3:
            del parent[key]
        elif action == 4 and isinstance(parent, dict):
            parent[rng.choice((f"{key}x", str(key).upper(), "", "type"))] = copy.deepcopy(parent[key])
        else:
            parent[key] = {"a": [parent[key]]} if rng.random() < 0.5 else [copy.deepcopy(parent[key]) for _ in range(3)]
    return rng.choice(ODD_VALUES) if rng.random() < 0.03 else value


def mutate_bytes(data: bytes, rng: random.Random) -> bytes:
    """A copy with one to three changes: cut, bits turned, a word made extreme, a piece repeated, removed or noise."""
    piece = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 3))):
        # The head of a file holds what sizes and places follow from, so half of the changes go there.
        limit = min(len(piece), 512) if rng.random() < 0.5 else len(piece)
        at = rng.randrange(limit) if limit else 0
        action = rng.randrange(6)
        if action == 0:
            del piece[at:]
        elif action == 1 and piece:
            piece[at] ^= 1 << rng.randrange(8)
        elif action == 2:
            width = rng.choice((1, 2, 4, 8))
            word = rng.choice(EXTREME_WORDS) % 2 ** (8 * width)
            piece[at : at + width] = word.to_bytes(width, "little")
        elif action == 3:
            piece[at:at] = piece[at : at + rng.randrange(1, 64)]
        elif action == 4:
            del piece[at : at + rng.randrange(1, 64)]
        else:
            piece[at : at + 8] = rng.randbytes(8)
    return bytes(piece)


def deep_json(depth: int = 100_000) -> str:
    """JSON that is nested deeper than a parser's stack."""
    return "[" * depth + "]" * depth


def survives(parse: Callable[[], object]) -> bool:
    """Whether `parse` accepted its input; it must end in bounded time and memory, with an `ElasticError` if at all.

    Raises:
        AssertionError: another error, too long, or too much memory.
    """
    accepted = True
    before = _peak_bytes()
    try:
        with _no_longer_than(SECONDS):
            parse()
    except ElasticError as error:
        message = str(error)
        assert message.strip(), "an error without a message"
        assert len(message) < 2**20, f"an error of {len(message)} letters"
        accepted = False
    taken = _peak_bytes() - before
    assert taken < BYTES, f"took {taken / 2**20:.0f} MiB more than this process ever had"
    return accepted


def _nodes(value: Any) -> Iterator[Any]:
    yield value
    children = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    for child in children:
        yield from _nodes(child)


def _peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


@contextmanager
def _no_longer_than(seconds: int) -> Iterator[None]:
    def stop(number: int, frame: FrameType | None) -> None:
        raise Hang(f"no end after {seconds} s")

    before = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)
