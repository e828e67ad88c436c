"""ASGI: counts requests per route for Starlette, FastAPI, Quart, Litestar and whatever else speaks it.

    app.add_middleware(MemwatchMiddleware)            # Starlette, FastAPI
    app = MemwatchMiddleware(app)                     # anything

Law: pure ASGI, never a `BaseHTTPMiddleware`: context variables, background tasks, streaming, cancellation and exceptions pass
through unchanged, and so do websockets and lifespan.
"""

from __future__ import annotations

from asyncio import CancelledError
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from memwatch.routes import UNMATCHED, ledger
from memwatch.routes.names import method, normalised

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]


class MemwatchMiddleware:
    """Counts every HTTP request under its route.

    Args:
        app: the application below.
        route: says the route of a scope once the application has seen it, such as `lambda scope: scope["endpoint"].__name__`; None
            from it, or an exception, falls back to the default: the framework's own template, else the path with ids replaced.

    A request is over when the application returns: after the last byte of a stream, and after background tasks.  It is an error
    if it raises or answers with a status of 500 or more; one that is cancelled (its client went away) is not.

    Cost: 3 to 5 µs a request (bench/middleware.py).
    """

    def __init__(self, app: App, *, route: Callable[[Scope], str | None] | None = None) -> None:
        self.app = app
        self._route = route
        self._ledger = ledger()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The ASGI interface."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        status = 0

        def watched_send(message: Message) -> Awaitable[None]:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message.get("status", 0)
            return send(message)

        root = scope.get("root_path", "")
        number = self._ledger.begin(lambda: self._named(scope, root, 0))
        failed = False
        try:
            await self.app(scope, receive, watched_send)
        except (CancelledError, GeneratorExit):
            raise
        except BaseException:
            failed = True
            raise
        finally:
            self._ledger.end(number, self._named(scope, root, status), failed=failed or status >= 500)

    def _named(self, scope: Scope, root: str, status: int) -> str:
        try:
            if self._route is not None:
                try:
                    said = self._route(scope)
                except Exception:
                    said = None
                if said:
                    return str(said)
            return _route_of(scope, root, status)
        except Exception:
            return UNMATCHED  # a scope that no specification knows


def _route_of(scope: Scope, root: str, status: int) -> str:
    matched = scope.get("route")
    template = getattr(matched, "path", None)
    if not isinstance(template, str):
        # 404 and no framework that says what it routed to: whatever anybody typed.
        if status == 404 or ("router" in scope and "endpoint" not in scope):
            return UNMATCHED
        return f"{method(scope.get('method'))} {normalised(scope.get('path', ''))}"
    mounted = scope.get("root_path", "")
    if mounted != root:
        # Mounted below another application: what comes before, with the values of its parameters replaced by their names.
        if hasattr(matched, "app") and not hasattr(matched, "methods"):  # the mount itself: nothing below it said more
            if status == 404:
                return UNMATCHED
            template = "/{path}"
        template = _with_names(mounted[len(root) :], scope.get("path_params") or {}) + template
    return f"{method(scope.get('method'))} {template}"


def _with_names(path: str, parameters: dict[str, Any]) -> str:
    names = {str(value): f"{{{name}}}" for name, value in parameters.items()}
    return "/".join(names.get(segment, segment) for segment in path.split("/"))
