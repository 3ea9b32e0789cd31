"""For all made-up records: background sentences, and the search for the size that gives a number of tokens."""

from __future__ import annotations

import random
from collections.abc import Callable

from elastic_jax.errors import DataError
from eval.suites.words import COLOURS, THINGS

_NEAR = 0.9
_ROUNDS = 12


def filler(rng: random.Random) -> str:
    """A background sentence, which no question is about."""
    first, second = rng.sample(THINGS, 2)
    place = rng.choice(("beside", "behind", "in front of", "not far from", "across from", "to the left of"))
    return f"The {rng.choice(COLOURS)} {first} stood {place} the {rng.choice(COLOURS)} {second}."


def with_filler(rng: random.Random, sentences: list[str], count: int) -> list[str]:
    """The sentences in their order, with `count` background sentences at random places between them."""
    total = len(sentences) + count
    places = set(rng.sample(range(total), len(sentences)))
    rest = iter(sentences)
    return [next(rest) if place in places else filler(rng) for place in range(total)]


def fit_size[T](build: Callable[[int], T], measure: Callable[[T], int], target: int) -> T:
    """Tries sizes until what `build` makes measures `target` tokens, or up to a tenth fewer if sizes allow that.

    Raises:
        DataError: it measures more than `target` even at size 1.
    """
    best = build(1)
    smallest = best_tokens = measure(best)
    if smallest > target:
        raise DataError(f"a record of {target} tokens is asked for, but its shortest form has {smallest}.")
    low, high, size = 1, None, 2 * max(1, target // 64)
    for _ in range(_ROUNDS):
        made = build(size)
        tokens = measure(made)
        if tokens <= target:
            low = max(low, size)
            if tokens > best_tokens:
                best, best_tokens = made, tokens
            if tokens >= _NEAR * target:
                break
        else:
            high = size if high is None else min(high, size)
        slope = max(tokens - smallest, 1) / max(size - 1, 1)
        size = 1 + int((0.97 * target - smallest) / slope)
        if high is not None and not low < size < high:
            size = (low + high) // 2
        if size <= low:
            break
    return best
