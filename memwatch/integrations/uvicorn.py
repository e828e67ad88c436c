"""uvicorn: let a worker that leaks end without losing a request, so that uvicorn's supervisor starts a fresh one.

    @contextlib.asynccontextmanager
    async def lifespan(app):
        memwatch.start()
        memwatch.integrations.uvicorn.recycle()
        yield

Only under `uvicorn --workers N`: a server without a supervisor would simply end.  A worker first stops accepting (the listening
socket is shared: the others take what comes), serves what it has accepted, and then exits.
"""

from __future__ import annotations

import gc
import multiprocessing
import sys
from collections.abc import Iterable
from typing import Any

import memwatch
from memwatch.audience import say
from memwatch.integrations.accepting import accepted, stop_accepting, when
from memwatch.recycling import JITTER, recycler

OTHERS = {
    "hypercorn": "with hypercorn the whole server ends when one worker does; it has max_requests of its own",
    "granian": "granian breaks requests of a worker that ends by itself; it has --workers-max-rss and --rss-samples of its own",
}
"""Servers under which nothing of ours ends a worker, and why."""
CLOSE = (b"connection", b"close")
SETTLE_S = 1.0
"""Shortest time between the last accept and the exit: a connection is one of the server's some turns of the loop after it was
accepted, and under uvloop nothing tells of it until then."""
LINGER_S = 10.0
"""Longest time for connections on which no request comes: an exit would close one whose request is on its way."""
GRACE_S = 30.0
"""Longest time for answers that are under way, such as streams; with `timeout_graceful_shutdown`, uvicorn has so long on top."""


def recycle(*, on: bool | Iterable[str] = True, jitter: str = JITTER) -> None:
    """Recycle this worker when it leaks; call it after `memwatch.start()`.

    Args:
        on: True for a confirmed leak, or memory that runs out within the hour; or some of `memwatch.recycling.REASONS`.
        jitter: it goes after a random time up to this long.

    Raises:
        memwatch.config.SettingError: a reason is none, or the jitter is malformed.
    """
    sink = recycler(leave, on, jitter)
    watcher = memwatch.current()
    why_not = refusal() if watcher is not None else "nothing is watched: call memwatch.start() first"
    if why_not is not None:
        say("workers that leak are not recycled: %s", why_not)
    elif watcher is not None and sink is not None:
        watcher.add_callbacks(sinks=[sink])


def refusal() -> str | None:
    """Why this process cannot be recycled; None if it can."""
    for name, why_not in OTHERS.items():
        if name in sys.modules:
            return why_not
    if multiprocessing.parent_process() is None:
        return "this uvicorn has no supervisor that would start another worker; run it with --workers 2 or more"
    return None


def leave(*, supervised: bool = False) -> str | None:
    """Ask the server of this process to end when its requests are done; returns why it cannot.

    Args:
        supervised: another supervisor than uvicorn's starts the next one.
    """
    why_not = None if supervised else refusal()
    if why_not is not None:
        return why_not
    servers = _servers()
    if not servers:
        return "no uvicorn server runs in this process"
    if any(getattr(server.config, "should_reload", False) for server in servers):
        # Its parent waits for files to change, and holds the socket: requests would wait for ever.
        return "uvicorn --reload starts no other worker when this one ends; run it with --workers 2 or more"
    if not supervised and all(getattr(server.config, "workers", 2) < 2 for server in servers):
        # A process of the program's own with a server in it: it has a parent, which is no supervisor.
        return "this uvicorn has no supervisor that would start another worker; run it with --workers 2 or more"
    _leave(servers)
    return None


def _leave(servers: list[Any]) -> None:
    for server in servers:
        loop = next((listening.get_loop() for listening in getattr(server, "servers", ())), None)
        if loop is not None:
            loop.call_soon_threadsafe(_close, server, loop)
        else:
            server.should_exit = True  # it does not listen: nobody can have a request under way


def _close(server: Any, loop: Any) -> None:
    """In the server's loop."""
    listening, began_s = list(server.servers), loop.time()

    def is_served() -> bool:
        return _is_served(server, listening, loop.time() - began_s)

    def leave_now() -> None:
        if getattr(server.config, "timeout_graceful_shutdown", 0) is None:
            # uvicorn would wait for endless answers for ever, accept nobody meanwhile, and have no successor.
            server.config.timeout_graceful_shutdown = max(1.0, GRACE_S - (loop.time() - began_s))
        server.should_exit = True

    _announce(server)
    stop_accepting(loop, listening, lambda: loop.call_later(SETTLE_S, when, is_served, leave_now, loop))


def _is_served(server: Any, listening: list[Any], waited_s: float) -> bool:
    """Whether the server may exit.  It closes a connection that was accepted and whose request is still to come."""
    connections = list(server.server_state.connections)
    open_count = accepted(listening)
    if open_count is None and getattr(server.config, "is_ssl", False) and waited_s < LINGER_S / 2:
        open_count = 1  # perhaps: uvloop does not say, and a handshake may not be done
    is_answering = any(not getattr(getattr(each, "cycle", None), "response_complete", True) for each in connections)
    return not (connections or open_count) or waited_s >= (GRACE_S if is_answering else LINGER_S)


def _announce(server: Any) -> None:
    """Answers from here on say that the connection ends with them: one that were closed while it is idle could have the client's
    next request under way, which would be lost."""
    app = server.config.loaded_app

    async def last(scope: Any, receive: Any, send: Any) -> None:
        async def send_last(message: Any) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message.get("headers", ()), CLOSE]}
            await send(message)

        # A websocket's connection stays, and HTTP/2 has other words for it.
        ends = scope["type"] == "http" and str(scope.get("http_version", "1.1")).startswith("1")
        await app(scope, receive, send_last if ends else send)

    server.config.loaded_app = last
    for connection in server.server_state.connections:
        connection.app = last


def _servers() -> list[Any]:
    """The servers of this process: nothing hands them out.

    Cost: some 0.13 s per million containers, once in the life of a worker (bench/services.py).
    """
    return [item for item in gc.get_objects() if type(item).__module__ == "uvicorn.server" and type(item).__name__ == "Server"]
