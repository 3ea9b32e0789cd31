"""The server's socket and its life: it listens, drains when it is told to end, and is gone."""

from __future__ import annotations

import contextlib
import errno
import signal
import socket
from collections.abc import Iterator

import uvicorn
from starlette.applications import Starlette

from elastic_jax.errors import ConfigError
from elastic_jax.serve.config import ServerConfig

_BACKLOG = 1024


def listen(config: ServerConfig) -> socket.socket:
    """A socket that listens already, so that the address is this server's before the model is loaded.

    Raises:
        ConfigError: no such address, or a port that is taken or needs more rights.
    """
    place = f"port {config.port} of {config.host}"
    try:
        found = socket.getaddrinfo(config.host, config.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        return socket.create_server(found[0][4][:2], family=found[0][0], backlog=_BACKLOG)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise ConfigError(f"{place} is in use; end what listens there, or give another --server.port.") from None
        raise ConfigError(f"cannot listen on {place}: {error.strerror}. Give another --server.host or port.") from error


def address(listening: socket.socket) -> str:
    """The server's address, such as `http://127.0.0.1:8000`."""
    host, port = listening.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def run(app: Starlette, listening: socket.socket, config: ServerConfig) -> None:
    """Serves until SIGTERM or Ctrl-C; then takes no more connections and gives running requests `drain_s` to end."""
    settings = uvicorn.Config(
        app, log_level="warning", access_log=False, timeout_graceful_shutdown=config.drain_s, ws="none"
    )
    with _sigterm_is_no_failure(), listening:
        uvicorn.Server(settings).run(sockets=[listening])


@contextlib.contextmanager
def _sigterm_is_no_failure() -> Iterator[None]:
    """Lets a process whose server has drained after SIGTERM end as usual: uvicorn raises the signal again."""
    before = signal.signal(signal.SIGTERM, lambda *_: None)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
