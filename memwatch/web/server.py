"""The dashboard on a port: uvicorn, until somebody ends it."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable
from types import FrameType

import uvicorn

from memwatch.web.guard import Guard

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


class _Server(uvicorn.Server):
    """Ends pages that are live before it waits for what is being answered: they would never end by themselves."""

    def __init__(self, config: uvicorn.Config, close: Callable[[], None]) -> None:
        super().__init__(config)
        self._close = close

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        super().handle_exit(sig, frame)
        self._loop.call_soon_threadsafe(self._close)

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        self._loop = asyncio.get_running_loop()
        await super().serve(sockets)


def run(app: Guard, listening: socket.socket, ready: Callable[[], None]) -> None:
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
        _Server(config, app.close).run([listening])
