"""`elastic-jax serve`: a model behind HTTP, in the protocol of OpenAI."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from elastic_jax.cli.args import parse_verb
from elastic_jax.cli.model import ModelSettings, load_model, load_model_tokenizer
from elastic_jax.errors import ConfigError
from elastic_jax.kv_cache import CacheConfig
from elastic_jax.serve.config import ServerConfig
from elastic_jax.settings import settings_yaml
from elastic_jax.text import stops


@dataclass(frozen=True)
class ServeSettings(ModelSettings):
    """Model, engine and server."""

    routing: Literal["auto", "full", "sparse", "heads", "routers"] = "auto"
    """Of every request; as for `generate`."""
    router_bias: float = 0.0
    """Of every request; as for `generate`."""
    slots: int = 8
    """Requests that are answered at the same time; others wait."""
    max_length: int = 4096
    """Tokens of a request at most, prompt and answer together; the model's positions if these are fewer."""
    pool_mib: float | None = None
    """MiB for the pages of a cache below 16 bits; by default so many that no request waits for pages."""
    cache: CacheConfig = field(default_factory=CacheConfig)
    """Cache of keys and values of all rows."""
    server: ServerConfig = field(default_factory=ServerConfig)
    """Address, limits and the name of the model."""
    reuse: bool = True
    """Keep what ended requests have read in their rows, and read prompts that begin with it from there on."""
    warm_up: int = 128
    """Compile the programs for prompts up to this many tokens before the first request; 0 for none."""

    def __post_init__(self) -> None:
        if self.slots < 1 or self.max_length < 2:
            raise ConfigError(f"slots is {self.slots} and max_length {self.max_length}; want 1 and 2 or more.")
        if self.warm_up < 0:
            raise ConfigError(f"warm_up is {self.warm_up}; want 0 or more tokens.")


def main(argv: Sequence[str]) -> int:
    """Serve a model over HTTP in the protocol of OpenAI, to many clients at once."""
    asked = parse_verb(ServeSettings, argv, verb="serve", summary=str(main.__doc__))
    settings, key = asked.settings, None
    if settings.server.key_variable is not None:
        key = os.environ.get(settings.server.key_variable)
        if not key:
            variable = settings.server.key_variable
            raise ConfigError(f"the environment variable {variable} is empty; put the key of the clients into it.")
    if asked.dry_run:
        print(settings_yaml(settings), end="")
        return 0
    try:
        from elastic_jax.serve.app import make_app
        from elastic_jax.serve.server import address, listen, run
    except ModuleNotFoundError as error:
        raise ConfigError(f"serve needs {error.name}: pip install 'elastic-jax[serve]'.") from error

    from elastic_jax.engine import Engine, EngineConfig
    from elastic_jax.generation import end_ids
    from elastic_jax.serve.answers import Service
    from elastic_jax.serve.worker import Worker

    with listen(settings.server) as listening:
        tokenizer, model = load_model_tokenizer(settings), load_model(settings)
        routing = None if settings.routing == "auto" else settings.routing
        model.resolved(routing, 1)  # refuses heads that the model lacks, before any request asks for them
        have = model.config.positions
        length = settings.max_length if have is None else min(settings.max_length, have)
        config = EngineConfig(settings.slots, length, settings.pool_mib)
        engine = Engine(model, config, settings.cache, reuse=settings.reuse)
        if settings.warm_up:
            engine.warm_up(min(settings.warm_up, length - 1))
        service = Service(
            Worker(engine),
            tokenizer,
            settings.server,
            settings.server.name or settings.model,
            stops.end_tokens(tokenizer, end_ids(model.config)),
            routing,
            settings.router_bias,
        )
        print(
            f"{service.name} at {address(listening)}/v1: {config.slots} rows of {length} tokens, "
            f"cache {engine.nbytes / 2**20:.1f} MiB{'' if key else ', no key needed'}.",
            file=sys.stderr,
            flush=True,
        )
        run(make_app(service, key), listening, settings.server)
    return 0
