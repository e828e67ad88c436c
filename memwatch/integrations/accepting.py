"""An asyncio server that stops accepting without losing whom it has accepted."""

from __future__ import annotations

import asyncio.selector_events
from collections.abc import Callable, Iterable
from typing import Any


def stop_accepting(loop: Any, servers: Iterable[Any], then: Callable[[], object]) -> None:
    """Close these servers of a loop and call `then`; connections stay.  To be called in the loop.

    asyncio accepts in one turn of its loop and makes the transport in the next, which fails if the server has been closed in
    between: the client would see its connection reset (`asyncio.base_events.Server._attach` asserts it, as of Python 3.11 to 3.13).
    So the loop first no longer looks whether somebody has come, and the server is closed a turn later.  uvloop does both in one.
    """
    servers = list(servers)
    if isinstance(loop, asyncio.selector_events.BaseSelectorEventLoop):
        for server in servers:
            for listening in server.sockets:
                loop.remove_reader(listening.fileno())

    def close() -> None:
        for server in servers:
            server.close()
        then()

    loop.call_soon(close)


LOOK_S = 0.1


def when(is_time: Callable[[], bool], then: Callable[[], object], loop: Any) -> None:
    """Call `then` in this loop as soon as it is time, looking every `LOOK_S`.  To be called in the loop."""
    if is_time():
        then()
    else:
        loop.call_later(LOOK_S, when, is_time, then, loop)


def accepted(servers: Iterable[Any]) -> int | None:
    """Connections of these servers that are open, those included whose TLS handshake is not done; None if the loop does not say."""
    count = 0
    for server in servers:
        clients = getattr(server, "_clients", None)  # Python 3.13; before that it counts
        found = getattr(server, "_active_count", None) if clients is None else len(clients)
        if not isinstance(found, int):
            return None
        count += found
    return count
