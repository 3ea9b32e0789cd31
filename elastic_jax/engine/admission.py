"""What an engine checks before a request waits, and when the beginning of a prompt need not be read again."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from elastic_jax.config import ModelConfig
from elastic_jax.engine.config import EngineConfig
from elastic_jax.engine.requests import Prefix, Request
from elastic_jax.errors import ConfigError, ShapeError
from elastic_jax.kv_cache import CacheConfig
from elastic_jax.layout import check_token_ids


def check_request(job: Request | Prefix, model: ModelConfig, engine: EngineConfig) -> None:
    """Raises `ShapeError` or `ConfigError` for what no engine of this size could serve."""
    prompt = job.tokens if isinstance(job, Prefix) else job.prompt
    if not prompt:
        raise ShapeError("the prompt is empty; want at least one token.")
    check_token_ids(prompt, model)
    new_tokens = 0
    if isinstance(job, Request):
        new_tokens = job.max_new_tokens
        _check_settings(job, model, engine)
    if len(prompt) + new_tokens > engine.max_length:
        raise ShapeError(
            f"prompt of {len(prompt)} tokens + max_new_tokens {new_tokens} = {len(prompt) + new_tokens}; the rows of "
            f"this engine hold {engine.max_length}. Shorten the prompt, or start the engine with a larger max_length."
        )


def _check_settings(request: Request, model: ModelConfig, engine: EngineConfig) -> None:
    if request.max_new_tokens < 1:
        raise ShapeError(f"max_new_tokens is {request.max_new_tokens}; want 1 or more.")
    if not 0 <= request.seed < 2**31:
        raise ConfigError(f"seed is {request.seed}; want 0 to 2**31 - 1.")
    if not 1 <= request.beams <= min(engine.slots, model.vocab_size):
        raise ConfigError(f"beams is {request.beams}; want 1 to {engine.slots}, the slots of this engine.")
    if request.beams > 1 and (request.sampling.temperature > 0 or request.draft is not None):
        raise ConfigError("beams search for the most likely answer; leave temperature and draft out.")
    prefix = request.prefix
    if prefix is None:
        return
    if prefix.dropped:
        raise ConfigError("the prefix was dropped; cache it again.")
    if request.routing is not None:
        raise ConfigError("routing and prefix were both given. Impose the routing on the prefix, in cache_prefix.")
    if request.prompt[: len(prefix.tokens)] != prefix.tokens:
        raise ShapeError(
            f"the prompt does not start with the {len(prefix.tokens)} tokens of its prefix; give the whole prompt."
        )


def longest_prefix(
    request: Request, prefixes: Iterable[Prefix], model: ModelConfig, cache: CacheConfig
) -> Prefix | None:
    """The prefix that saves most of the prompt, at least half, where using it changes no answer."""
    if request.routing is None or not is_exact(model, cache):
        return None
    modes, prompt = request.routing[:, 0], request.prompt
    fits = [
        prefix
        for prefix in prefixes
        if 2 * len(prefix.tokens) >= len(prompt)
        and prompt[: len(prefix.tokens)] == prefix.tokens
        and prefix.mode_LK is not None
        and np.array_equal(prefix.mode_LK, modes)
    ]
    return max(fits, key=lambda prefix: len(prefix.tokens), default=None)


def is_exact(model: ModelConfig, cache: CacheConfig) -> bool:
    """Whether reading on from a prefix with the same routing gives the keys and values of reading the whole prompt.

    So it is where the prompt sees, while it is read, what the answer sees: no token is packed, heads choose no blocks
    by content, sparse heads stay sparse, and angles do not depend on the length of the prompt.
    """
    return (
        cache.bits == 16
        and model.router.pattern == "fa-ssa"
        and cache.sparse_decode
        and model.rope.type not in ("dynamic", "longrope")
    )
