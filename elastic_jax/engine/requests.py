"""Requests, prefixes and events: what a caller gives to an engine and gets from it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import jax
import numpy as np

from elastic_jax.sampling import Sampling

Finish = Literal["stop", "length", "cancelled", "error"]
Drafter = Callable[[Sequence[int]], Sequence[int]]
"""From all tokens of a request so far, guesses of the next ones."""

MOST_LOGPROBS = 20
"""Most likely tokens that a request may ask for in each place."""


class TokenLogprob(NamedTuple):
    """How likely a token of an answer was, before temperature, top_k and top_p."""

    logprob: float
    """Natural logarithm of the probability."""
    most_likely: list[tuple[int, float]]
    """The most likely tokens in its place with their log-probabilities, the most likely first."""


@dataclass(frozen=True, eq=False)
class Event:
    """News of a request: one more token, or how it ended."""

    request: Request
    token: int | None = None
    finish: Finish | None = None


@dataclass(eq=False)
class Prefix:
    """The beginning of prompts, read once and kept, with the routing that was decided on it."""

    tokens: tuple[int, ...]
    routing: np.ndarray | None
    """Modes that were asked for; None left them to the routers."""
    router_bias: float
    owner: object
    """Stands for the engine that made it."""
    mode_LK: np.ndarray | None = None
    """Modes int8 `[L, K]`, once it is read."""
    logits_1V: jax.Array | None = None
    kept: Any = None
    dropped: bool = False
    waiting: int = 0
    """Requests in the queue that name it."""
    used: int = 0
    """Engine step of its last use."""
    error: BaseException | None = None
    """Why it could not be read; requests that name it end with the same error."""


@dataclass(eq=False)
class Request:
    """One prompt and its answer so far. Made by `Engine.submit`; read it, do not write to it."""

    prompt: tuple[int, ...]
    max_new_tokens: int
    sampling: Sampling
    seed: int
    routing: np.ndarray | None
    router_bias: float
    stop_tokens: frozenset[int]
    draft: Drafter | None
    beams: int
    length_penalty: float
    top_logprobs: int | None
    """How many most likely tokens `logprobs` names beside each token; None for no log-probabilities."""
    prefix: Prefix | None
    on_event: Callable[[Event], None] | None
    owner: object
    """Stands for the engine that made it."""
    tokens: list[int] = field(default_factory=list)
    """The answer so far, a stop token included."""
    logprobs: list[TokenLogprob] = field(default_factory=list)
    """Of each token of the answer, if asked for; drafts may leave some more."""
    finish: Finish | None = None
    """How it ended; None while it waits or runs."""
    error: BaseException | None = None
    """What its draft, its callback or its own part of the work raised; that ends the request and no other."""
    mode_LK: np.ndarray | None = None
    """Routing int8 `[L, K]`, once the prompt is read."""
    reused: int = 0
    """Tokens of the prompt that were not read again, because a kept prefix or a row held them."""
    score: float | None = None
    """Of the best beam: log-probability over tokens to the power of the length penalty."""
    events: deque[Event] = field(default_factory=deque)
    """Not yet taken by `Engine.stream`."""
