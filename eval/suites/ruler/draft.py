"""The draft of a generated prompt, and the search for the largest size that fits the budget of tokens."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from elastic_jax.errors import ConfigError
from eval.harness.encoding import Encoder
from eval.samples import Message, Rendered, Segment

CLOSE = 0.995
"""A prompt of this share of its budget is close enough."""
_ROUNDS = 40


@dataclass(frozen=True)
class Needle:
    """A piece of the context that the answer needs: its text, and the character of the context where it starts."""

    text: str
    start: int


@dataclass(frozen=True)
class Draft:
    """Instruction, text to search, question, beginning of the answer, and the right answers."""

    before: str
    context: str
    after: str
    prefix: str
    references: tuple[str, ...]
    needles: tuple[Needle, ...] = ()

    def rendered(self) -> Rendered:
        parts = (Segment(self.before), Segment(self.context, cuttable=True), Segment(self.after))
        return Rendered((Message("user", parts),), self.prefix)


def fit(
    make: Callable[[int], Draft], encoder: Encoder, budget: int, *, smallest: int, what: str, guess: int | None = None
) -> tuple[Draft, int]:
    """The largest draft found with at most `budget` tokens, and its size.

    `make` builds the draft of a size; tokens grow about linearly with it, so a few tries suffice. The result
    depends on `guess`, a size to try first, which must not depend on what was made before.

    Raises:
        ConfigError: even the smallest draft is longer.
    """
    best: tuple[Draft, int] | None = None
    high: int | None = None
    size, before = (guess or 2 * smallest + 8), (0, 0)
    for _ in range(_ROUNDS):
        draft = make(size)
        tokens = len(encoder.encode(draft.rendered()))
        if tokens <= budget:
            best = (draft, size)
            if tokens >= CLOSE * budget:
                break
        elif size <= smallest:
            raise ConfigError(f"{what}: the shortest prompt has {tokens} tokens, {budget} are left; ask for more.")
        else:
            high = size
        low = smallest - 1 if best is None else best[1]
        if high is not None and high - low <= 1:
            break
        slope = (tokens - before[1]) / (size - before[0])
        before = (size, tokens)
        size += int((0.999 * budget - tokens) / max(slope, 1e-3))
        size = max(size, low + 1)
        if high is not None and size >= high:
            size = (low + high) // 2 if high - low < 4 else high - max(1, (high - low) // 4)
    assert best is not None
    return best


def joined_with_starts(parts: list[str], separator: str) -> tuple[str, list[int]]:
    """The parts in one text, and where each starts."""
    starts, position = [], 0
    for part in parts:
        starts.append(position)
        position += len(part) + len(separator)
    return separator.join(parts), starts
