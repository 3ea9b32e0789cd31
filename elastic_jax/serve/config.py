"""Settings of the server."""

from __future__ import annotations

from dataclasses import dataclass

from elastic_jax.errors import ConfigError


@dataclass(frozen=True)
class ServerConfig:
    """Where the server listens, whom it answers, and what it bears."""

    host: str = "127.0.0.1"
    """Address to listen on. The default is reachable from this machine only; 0.0.0.0 is every network of it."""
    port: int = 8000
    """Port to listen on; 0 takes a free one and prints it."""
    name: str | None = None
    """Name under which clients ask for the model; by default what --model says."""
    key_variable: str | None = None
    """Environment variable that holds the key which clients must send; without it, none is needed."""
    timeout_s: float = 600.0
    """Seconds that a request may take, waiting included; then it ends with HTTP 504."""
    load: float = 4.0
    """Requests are refused with HTTP 429 while those accepted may need this many times all rows or pages of the
    engine: with 4, three quarters of them wait."""
    most_answers: int = 32
    """Answers of one request at most, its prompts times n."""
    answer_tokens: int = 1024
    """Longest answer of a chat whose request names no max_tokens."""
    body_mib: float = 8.0
    """Largest body of a request in MiB."""
    drain_s: int = 60
    """Seconds that running requests get to end after SIGTERM, while no new ones are taken."""

    def __post_init__(self) -> None:
        if not 0 <= self.port < 2**16:
            raise ConfigError(f"server port is {self.port}; want 0 (any free port) to 65535.")
        for name in ("timeout_s", "load", "most_answers", "answer_tokens", "body_mib", "drain_s"):
            if getattr(self, name) <= 0:
                raise ConfigError(f"server {name} is {getattr(self, name)}; want more than 0.")
        if self.name == "":
            raise ConfigError("server name is empty; give the name by which clients ask for the model.")
