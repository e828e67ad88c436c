"""The endpoints as ASGI and WSGI applications to mount: `/health`, and with a token `/memory`, `/caches`, `/gc`, `/metrics`.

    app.mount("/memwatch", memwatch.integrations.health.asgi_app(token=…))        # Starlette, FastAPI
    DispatcherMiddleware(app, {"/memwatch": memwatch.integrations.health.wsgi_app(token=…)})   # Flask

The token may also come from `MEMWATCH_TOKEN`.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Iterable, Mapping, MutableMapping
from http import HTTPStatus
from typing import Any

import memwatch
from memwatch.config import SettingError
from memwatch.endpoints import Endpoints, Request, Response
from memwatch.watcher import Watcher

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
AsgiApp = Callable[[Scope, Receive, Send], Awaitable[None]]
WsgiApp = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]

QUICK = frozenset({"/health", "/health/detailed"})
"""Answered on the event loop: they take microseconds."""


def asgi_app(
    *,
    token: str | None = None,
    hosts: Iterable[str] = (),
    public: Iterable[str] = (),
    watcher: Callable[[], Watcher | None] = memwatch.current,
) -> AsgiApp:
    """The endpoints as an ASGI application.

    Args:
        token: what `Authorization: Bearer …` must hold for everything but `/health` [`MEMWATCH_TOKEN`]; without one only `/health`
            is there.
        hosts: names that the Host header may have besides `localhost` and addresses in figures; `["*"]`: any.
        public: paths that need no token besides `/health`, such as `["/metrics"]`.
        watcher: gives the watcher.

    Raises:
        memwatch.config.SettingError: the token is too short, or a path is none of ours.
    """
    endpoints = _endpoints(token, hosts, public, watcher)

    async def application(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await _live(receive, send)
        elif scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.close", "code": 1000})
        elif scope["type"] == "http":
            request = Request(
                scope["method"].upper(),
                _below(scope["path"], scope.get("root_path") or ""),
                scope.get("query_string", b"").decode("latin-1"),
                {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]},
            )
            response = await _answered(endpoints, request)
            headers = [(b"content-type", response.content_type.encode()), (b"content-length", b"%d" % response.content_length)]
            headers += [(name.lower().encode(), value.encode("latin-1")) for name, value in response.headers]
            await send({"type": "http.response.start", "status": response.status, "headers": headers})
            await send({"type": "http.response.body", "body": response.body})

    return application


def wsgi_app(
    *,
    token: str | None = None,
    hosts: Iterable[str] = (),
    public: Iterable[str] = (),
    watcher: Callable[[], Watcher | None] = memwatch.current,
) -> WsgiApp:
    """The endpoints as a WSGI application; arguments and errors are those of `asgi_app`."""
    endpoints = _endpoints(token, hosts, public, watcher)

    def application(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        headers = {name[5:].replace("_", "-").lower(): value for name, value in environ.items() if name.startswith("HTTP_")}
        request = Request(
            environ["REQUEST_METHOD"].upper(), environ.get("PATH_INFO", "") or "/", environ.get("QUERY_STRING", ""), headers
        )
        response = endpoints.answer(request)
        try:
            phrase = HTTPStatus(response.status).phrase
        except ValueError:
            phrase = "Unknown"
        fixed = [("Content-Type", response.content_type), ("Content-Length", str(response.content_length))]
        start_response(f"{response.status} {phrase}", [*fixed, *response.headers])
        return [response.body]

    return application


def _endpoints(token: str | None, hosts: Iterable[str], public: Iterable[str], watcher: Callable[[], Watcher | None]) -> Endpoints:
    given, place = (token, "token") if token is not None else (_from(os.environ), "MEMWATCH_TOKEN")
    try:
        return Endpoints(token=given, hosts=hosts, public=public, watcher=watcher)
    except ValueError as error:
        raise SettingError(f"{place}: {error}") from None


def _from(environ: Mapping[str, str]) -> str | None:
    return environ.get("MEMWATCH_TOKEN") or None


def _below(path: str, root: str) -> str:
    """The path below where we are mounted.  Servers and frameworks differ in whether `path` holds what was mounted."""
    root = root.rstrip("/")
    return (path[len(root) :] if path == root or path.startswith(f"{root}/") else path) or "/"


async def _answered(endpoints: Endpoints, request: Request) -> Response:
    """What reads a record, or collects, must not hold up an event loop; without asyncio (trio) it is answered in place."""
    if request.path in QUICK:
        return endpoints.answer(request)
    try:
        loop = asyncio.get_running_loop()
    except RuntimeError:
        return endpoints.answer(request)
    return await loop.run_in_executor(None, endpoints.answer, request)


async def _live(receive: Receive, send: Send) -> None:
    while True:
        message = await receive()
        await send({"type": f"{message['type']}.complete"})
        if message["type"] == "lifespan.shutdown":
            return
