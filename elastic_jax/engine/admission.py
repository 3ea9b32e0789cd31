"""What an engine checks before a request waits, and when the beginning of a prompt need not be read again."""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np

from elastic_jax.config import ModelConfig
from elastic_jax.engine.config import EngineConfig
from elastic_jax.engine.requests import MOST_LOGPROBS, Prefix, Request
from elastic_jax.engine.slots import Demand, Slots
from elastic_jax.errors import ConfigError, ShapeError, shown
from elastic_jax.kv_cache import CacheConfig
from elastic_jax.layout import check_token_ids
from elastic_jax.model import ElasticForCausalLM
from elastic_jax.routing import Imposed, check_router_bias, to_modes
from elastic_jax.sampling import Sampling
from elastic_jax.settings import check_seed


def imposed_modes(routing: Imposed | None, model: ElasticForCausalLM) -> np.ndarray | None:
    """Modes int8 `[L, 1, K]` of one row, on the host: the engine compares and counts them. None: the routers decide."""
    _, gates = model.resolved(routing, 1)
    return None if gates is None else np.asarray(to_modes(gates.z))


def check_owner(job: object, owner: object, kind: type[Request | Prefix]) -> None:
    """Raises `ConfigError` unless `job` is of this kind and of the engine for which `owner` stands."""
    if not isinstance(job, kind) or job.owner is not owner:
        raise ConfigError(f"{shown(job)} is no {kind.__name__} of this engine; use the engine that made it.")


def demand_of(job: Request | Prefix) -> Demand:
    """What a request or prefix asks of the slots."""
    if isinstance(job, Prefix):
        return Demand(len(job.tokens), len(job.tokens))
    shared = 0 if job.prefix is None else len(job.prefix.tokens)
    return Demand(len(job.prompt), len(job.prompt) + job.max_new_tokens, job.beams, shared)


def check_request(job: Request | Prefix, slots: Slots) -> None:
    """Raises `ShapeError` or `ConfigError` for what slots of this number and size could never serve."""
    model, engine = slots.config, slots.engine
    prompt = job.tokens if isinstance(job, Prefix) else job.prompt
    if not prompt:
        raise ShapeError("the prompt is empty; want at least one token.")
    check_token_ids(prompt, model)
    check_router_bias(job.router_bias)
    if isinstance(job, Request):
        _check_settings(job, model, engine)
    demand = demand_of(job)
    if demand.total > engine.max_length:
        new_tokens = demand.total - demand.prompt
        raise ShapeError(
            f"prompt of {len(prompt)} tokens + max_new_tokens {new_tokens} = {demand.total}; the rows of this engine "
            f"hold {engine.max_length}. Shorten the prompt, or start the engine with a larger max_length."
        )
    if isinstance(job, Request) and job.prefix is not None:
        # A prefix holds at most what one more row would.
        demand = Demand(demand.prompt, demand.total, demand.rows + 1)
    refusal = slots.refusal(demand, None if job.routing is None else job.routing[:, 0])
    if refusal:
        raise ShapeError(refusal)


def _check_settings(request: Request, model: ModelConfig, engine: EngineConfig) -> None:
    if not isinstance(request.sampling, Sampling):
        raise ConfigError(f"sampling is {shown(request.sampling)}; want a Sampling.")
    if request.max_new_tokens < 1:
        raise ShapeError(f"max_new_tokens is {request.max_new_tokens}; want 1 or more.")
    check_seed(request.seed)
    if not 1 <= request.beams <= min(engine.slots, model.vocab_size):
        raise ConfigError(f"beams is {request.beams}; want 1 to {engine.slots}, the slots of this engine.")
    if request.beams > 1 and (request.sampling.temperature > 0 or request.draft is not None):
        raise ConfigError("beams search for the most likely answer; leave temperature and draft out.")
    if request.top_logprobs is not None:
        if not 0 <= request.top_logprobs <= min(MOST_LOGPROBS, model.vocab_size):
            raise ConfigError(f"logprobs is {request.top_logprobs}; want 0 to {min(MOST_LOGPROBS, model.vocab_size)}.")
        if request.beams > 1:
            raise ConfigError("beams have no log-probabilities of tokens; leave logprobs out.")
    if not _is_finite(request.length_penalty):
        raise ConfigError(f"length_penalty is {shown(request.length_penalty)}; want a finite number.")
    for name, function in (("draft", request.draft), ("on_event", request.on_event)):
        if function is not None and not callable(function):
            raise ConfigError(f"{name} is {shown(function)}; want a function.")
    if request.beams > model.vocab_size - len(request.stop_tokens):
        raise ConfigError(
            f"{len(request.stop_tokens)} stop tokens of {model.vocab_size} leave less than {request.beams} beams to "
            "continue; name fewer stop tokens."
        )
    prefix = request.prefix
    if prefix is None:
        return
    check_owner(prefix, request.owner, Prefix)
    if prefix.error is not None:
        raise ConfigError(f"the prefix could not be read ({shown(prefix.error)}); cache it again.")
    if prefix.dropped:
        raise ConfigError("the prefix was dropped; cache it again.")
    if request.routing is not None:
        raise ConfigError("routing and prefix were both given. Impose the routing on the prefix, in cache_prefix.")
    if request.prompt[: len(prefix.tokens)] != prefix.tokens:
        raise ShapeError(
            f"the prompt does not start with the {len(prefix.tokens)} tokens of its prefix; give the whole prompt."
        )


def _is_finite(value: object) -> bool:
    return isinstance(value, int | float | np.number) and not isinstance(value, bool) and math.isfinite(value)


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
