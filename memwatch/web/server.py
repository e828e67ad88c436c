"""The dashboard on a port: uvicorn, until somebody ends it."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable

import uvicorn
from starlette.types import ASGIApp

CONNECTIONS_MOST = 512
"""Beyond these a connection is answered 503: each takes a descriptor."""
FAREWELL_S = 2
"""What is being answered when somebody ends the server has this long; pages that are live end at once."""


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens there.

    Raises:
        OSError: the port is taken, or the host is not this machine's.
    """
    family, kind, protocol, _, address = socket.getaddrinfo(
        host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE | socket.AI_ADDRCONFIG if not host else socket.AI_PASSIVE
    )[0]
    listening = socket.socket(family, kind, protocol)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
        listening.listen(128)
    except BaseException:
        listening.close()
        raise
    return listening


def run(app: ASGIApp, listening: socket.socket, ready: Callable[[], None]) -> None:
    """Serve until SIGINT or SIGTERM."""
    config = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        server_header=False,
        lifespan="off",
        ws="none",
        limit_concurrency=CONNECTIONS_MOST,
        timeout_graceful_shutdown=FAREWELL_S,
    )
    ready()
    with contextlib.suppress(KeyboardInterrupt):  # uvicorn has ended in an orderly way, and raises it once more
        uvicorn.Server(config).run([listening])
