"""Responses kept in front of an ASGI or WSGI application.

Law: the application's answer reaches the client as it comes, whether it is kept or not; what fails in the cache costs a hit.
"""

from __future__ import annotations

import http.client
import logging
from collections.abc import Awaitable, Callable, Iterable, Iterator, MutableMapping
from itertools import chain
from typing import Any

from memwatch.caches import http_rules as rules
from memwatch.caches.cache import Cache
from memwatch.caches.http_rules import Request, Response, Route
from memwatch.caches.tiered import TieredCache

log = logging.getLogger("memwatch.caches")

Store = Cache[Any, Any] | TieredCache[Any, Any]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Any]]
Send = Callable[[Any], Awaitable[None]]
_CONDITIONS = frozenset(f"HTTP_{name.upper().replace('-', '_')}" for name in rules.CONDITIONS)


class _Responses:
    """What both kinds of server share: which route, which keys, what is kept."""

    def __init__(self, cache: Store, routes: Iterable[Route]) -> None:
        self.cache = cache
        self.routes = tuple(routes)
        for route in self.routes:
            if not isinstance(route, Route):
                raise TypeError(f"routes: {type(route).__name__} is not a Route")

    def route_of(self, request: Request) -> Route | None:
        return next((route for route in self.routes if route.matches(request.path)), None)

    def chosen(self, request: Request, names: Any, route: Route) -> tuple[Any, ...] | None:
        """The key of this client's variant, given the headers that the address varies on."""
        if not isinstance(names, list | tuple):
            return None
        return (*rules.address(request, route), *rules.variant(request, names))

    def fresh(self, stored: Any, request: Request) -> Response | None:
        """A stored response as this client gets it."""
        found = rules.from_plain(stored)
        return None if found is None else rules.answered(request, found[0], "HIT", max(0.0, rules.wall_s() - found[1]))

    def kept(self, request: Request, response: Response, route: Route) -> tuple[Response, list[tuple[Any, Any, float]]]:
        """A response as the client gets it, and what is to be stored: key, value, seconds."""
        now_s = rules.wall_s()
        lifetime = rules.lifetime_s(request, response, route, now_s) if rules.is_whole(response) else None
        if lifetime is None:
            return response, []
        response = rules.with_validators(response)
        names = rules.varied(response, route)
        place = rules.address(request, route)
        stored = rules.to_plain(response, now_s)
        return response, [(place, list(names), lifetime), ((*place, *rules.variant(request, names)), stored, lifetime)]

    def mutated(self, request: Request, status: int) -> tuple[tuple[str, ...], list[tuple[Any, ...]]]:
        """Tags and addresses that a request has made out of date."""
        if request.method in rules.SAFE_METHODS or not 200 <= status < 400:
            return (), []
        routes = [route for route in self.routes if route.matches(request.path)]
        tags = tuple(tag for route in routes for tag in rules.tags_of(route.invalidates, request))
        return tags, [rules.address(request, route) for route in routes]


class ASGIResponseCache:
    """Keeps responses of an ASGI application.

        app = ASGIResponseCache(app, LRUCache(1000, max_bytes="64MB"), [Route("/feed", 60)])

    Args:
        cache: where they are kept; with a `TieredCache`, give it `serializer="msgpack"`: bodies are bytes.
        routes: the first that matches a request's path counts; without one it is passed on.

    Every answer of a route says in `X-Cache` what happened: HIT, MISS or BYPASS.
    """

    def __init__(self, app: Any, cache: Store, routes: Iterable[Route]) -> None:
        self.app = app
        self._responses = _Responses(cache, routes)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = _request_of(scope) if scope["type"] == "http" else None
        route = None if request is None else self._responses.route_of(request)
        if request is None or route is None:
            await self.app(scope, receive, send)
            return
        may_serve = rules.may_serve(request, route)
        if may_serve and ("authorization" not in request.headers or route.authenticated) and not rules.must_ask(request):
            found = await self._look_up(request, route)
            if found is not None:
                await _send(send, found)
                return
        if may_serve and "only-if-cached" in rules.directives(request.headers.get("cache-control")):
            await _send(send, Response(504, (("content-length", "0"), ("x-cache", "MISS")), b""))
            return
        if rules.asks_for_all(request, route):
            headers = [pair for pair in scope["headers"] if bytes(pair[0]).lower().decode("latin-1") not in rules.CONDITIONS]
            scope = {**scope, "headers": headers}
        await _Passing(self._responses, request, route, send, keeps=may_serve).run(self.app, scope, receive)

    async def _look_up(self, request: Request, route: Route) -> Response | None:
        cache = self._responses.cache
        names = await _aget(cache, rules.address(request, route))
        key = self._responses.chosen(request, names, route)
        return None if key is None else self._responses.fresh(await _aget(cache, key), request)


class _Passing:
    """One answer on its way from the application to the client, and into the cache if it may."""

    def __init__(self, responses: _Responses, request: Request, route: Route, send: Send, *, keeps: bool) -> None:
        self._responses, self._request, self._route, self._send = responses, request, route, send
        self._keeps = keeps
        self._start: Any = None
        self._head = Response(500, (), b"")
        self._body = bytearray()
        self._status = 500

    async def run(self, app: Any, scope: Scope, receive: Receive) -> None:
        await app(scope, receive, self._forward)
        if self._request.method not in rules.SAFE_METHODS:
            await self._invalidate()

    async def _forward(self, message: Any) -> None:
        kind = message["type"]
        if kind == "http.response.start":
            self._status = message["status"]
            self._head = Response(message["status"], _decoded(message.get("headers", ())), b"")
            if self._keeps and rules.lifetime_s(self._request, self._head, self._route, rules.wall_s()) is not None:
                self._start = message  # goes out with the first of the body: if that is all of it, it may be what the client has
                return
            self._keeps = False
            await self._send(self._marked(message))
            return
        if kind != "http.response.body" or not self._keeps:
            await self._send(message)
            return
        body, more = message.get("body", b""), message.get("more_body", False)
        self._body += body
        if self._start is not None and not more:
            response, entries = self._responses.kept(self._request, self._head._replace(body=bytes(self._body)), self._route)
            if len(self._body) <= self._route.max_item_bytes:
                await _send(self._send, rules.answered(self._request, response, "MISS", None))
                await self._store(entries)
                return
        if self._start is not None:
            start, self._start = self._start, None
            await self._send(self._marked(start))
        await self._send(message)
        if len(self._body) > self._route.max_item_bytes:
            self._keeps = False
            self._body.clear()
        elif not more:
            await self._store(self._responses.kept(self._request, self._head._replace(body=bytes(self._body)), self._route)[1])

    def _marked(self, start: Any) -> Any:
        word = b"MISS" if rules.may_serve(self._request, self._route) else b"BYPASS"
        return {**start, "headers": [*start.get("headers", ()), (b"x-cache", word)]}

    async def _store(self, entries: list[tuple[Any, Any, float]]) -> None:
        tags = rules.tags_of(self._route.tags, self._request)
        for key, value, lifetime in entries:
            await _aset(self._responses.cache, key, value, lifetime, tags)

    async def _invalidate(self) -> None:
        cache = self._responses.cache
        tags, places = self._responses.mutated(self._request, self._status)
        if isinstance(cache, TieredCache):
            if tags:
                await cache.ainvalidate(tag=tags)
            await cache.adelete_many(places)
            return
        _invalidate(cache, tags, places)


class WSGIResponseCache:
    """Keeps responses of a WSGI application; see `ASGIResponseCache`."""

    def __init__(self, app: Any, cache: Store, routes: Iterable[Route]) -> None:
        self.app = app
        self._responses = _Responses(cache, routes)

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        request = _request_of_environ(environ)
        route = self._responses.route_of(request)
        if route is None:
            return self.app(environ, start_response)  # type: ignore[no-any-return]
        cache = self._responses.cache
        may_serve = rules.may_serve(request, route)
        if may_serve and ("authorization" not in request.headers or route.authenticated) and not rules.must_ask(request):
            key = self._responses.chosen(request, cache.get(rules.address(request, route)), route)
            found = None if key is None else self._responses.fresh(cache.get(key), request)
            if found is not None:
                return _start(start_response, found)
        if may_serve and "only-if-cached" in rules.directives(request.headers.get("cache-control")):
            return _start(start_response, Response(504, (("content-length", "0"), ("x-cache", "MISS")), b""))
        if rules.asks_for_all(request, route):
            # A copy: the server's own must not lose them.
            environ = {name: value for name, value in environ.items() if name not in _CONDITIONS}
        return self._pass_on(environ, start_response, request, route, keeps=may_serve)

    def _pass_on(
        self, environ: dict[str, Any], start_response: Any, request: Request, route: Route, *, keeps: bool
    ) -> Iterable[bytes]:
        told: list[Any] = []
        written: list[bytes] = []

        def note(status: str, headers: list[tuple[str, str]], exc_info: Any = None) -> Any:
            if told and exc_info is None:
                raise AssertionError("start_response was called twice")
            told[:] = [status, headers, exc_info]
            return written.append

        parts = self.app(environ, note)
        try:
            source = iter(parts)
            begun = [*written]
            # Some applications call start_response with the first part only; and if there is no second, it is all of the body.
            begun += [part for part in (next(source, None),) if part is not None]
            second = next(source, None) if keeps else None
            if second is not None:
                begun.append(second)
            status = int(told[0].split(None, 1)[0])
            head = Response(status, tuple((name.lower(), value) for name, value in told[1]), b"")
            self._forget(request, status)
            keeps = keeps and rules.lifetime_s(request, head, route, rules.wall_s()) is not None
            if keeps and second is None:
                _close(parts)
                response, entries = self._responses.kept(request, head._replace(body=b"".join(begun)), route)
                if len(response.body) <= route.max_item_bytes:
                    self._store(request, route, entries)
                return _start(start_response, rules.answered(request, response, "MISS", None))
        except BaseException:
            _close(parts)
            raise
        word = "MISS" if rules.may_serve(request, route) else "BYPASS"
        start_response(told[0], [*told[1], ("X-Cache", word)], *((told[2],) if told[2] is not None else ()))

        def keep(body: bytes) -> None:
            self._store(request, route, self._responses.kept(request, head._replace(body=body), route)[1])

        return _Rest(begun, source, parts, keep if keeps else None, route.max_item_bytes)

    def _store(self, request: Request, route: Route, entries: list[tuple[Any, Any, float]]) -> None:
        tags = rules.tags_of(route.tags, request)
        for key, value, lifetime in entries:
            _set(self._responses.cache, key, value, lifetime, tags)

    def _forget(self, request: Request, status: int) -> None:
        tags, places = self._responses.mutated(request, status)
        if tags or places:
            _invalidate(self._responses.cache, tags, places)


class _Rest:
    """A WSGI answer in parts, passed on as they come, and kept when all have; closing it closes the application's."""

    def __init__(
        self, begun: list[bytes], source: Iterator[bytes], parts: Any, keep: Callable[[bytes], None] | None, most: int
    ) -> None:
        self._begun, self._source, self._parts, self._keep, self._most = begun, source, parts, keep, most

    def __iter__(self) -> Iterator[bytes]:
        body = bytearray()
        for part in chain(self._begun, self._source):
            if self._keep is not None:
                body += part
                if len(body) > self._most:
                    self._keep = None
                    body.clear()
            yield part
        if self._keep is not None:
            self._keep(bytes(body))

    def close(self) -> None:
        _close(self._parts)


def _close(parts: Any) -> None:
    close = getattr(parts, "close", None)
    if close is not None:
        close()


def _start(start_response: Any, response: Response) -> Iterable[bytes]:
    headers = [(name, value) for name, value in response.headers]
    start_response(f"{response.status} {http.client.responses.get(response.status, 'Unknown')}", headers)
    return [response.body] if response.body else []


async def _send(send: Send, response: Response) -> None:
    headers = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in response.headers]
    await send({"type": "http.response.start", "status": response.status, "headers": headers})
    await send({"type": "http.response.body", "body": response.body})


def _decoded(headers: Iterable[tuple[bytes, bytes]]) -> tuple[tuple[str, str], ...]:
    return tuple((bytes(name).decode("latin-1").lower(), bytes(value).decode("latin-1")) for name, value in headers)


def _joined(pairs: Iterable[tuple[str, str]]) -> dict[str, str]:
    headers: dict[str, str] = {}
    for name, value in pairs:
        headers[name] = f"{headers[name]}, {value}" if name in headers else value
    return headers


def _request_of(scope: Scope) -> Request:
    headers = _joined(_decoded(scope.get("headers", ())))
    host = headers.get("host") or ":".join(str(part) for part in scope.get("server") or ("",) if part is not None)
    query = scope.get("query_string", b"").decode("latin-1")
    # Servers differ in whether the path has the root path in front.
    root, path = scope.get("root_path", ""), scope["path"]
    target = rules.target_of(root.encode("utf-8", "surrogatepass"), path.encode("utf-8", "surrogatepass"), scope.get("raw_path"))
    path = path if path.startswith(root) else root + path
    return Request(scope["method"].upper(), scope.get("scheme", "http"), host, path, query, headers, target)


def _request_of_environ(environ: dict[str, Any]) -> Request:
    headers = {name[5:].replace("_", "-").lower(): value for name, value in environ.items() if name.startswith("HTTP_")}
    host = headers.get("host") or f"{environ.get('SERVER_NAME', '')}:{environ.get('SERVER_PORT', '')}"
    # Decoded once already, by the server; each character is a byte (PEP 3333).
    root, below = (_octets(environ.get(name, "")) for name in ("SCRIPT_NAME", "PATH_INFO"))
    target = rules.target_of(root, below)
    path = (root + below).decode("utf-8", "replace")
    query = environ.get("QUERY_STRING", "")
    return Request(environ["REQUEST_METHOD"].upper(), environ.get("wsgi.url_scheme", "http"), host, path, query, headers, target)


def _octets(text: str) -> bytes:
    try:
        return text.encode("latin-1")
    except UnicodeEncodeError:
        return text.encode("utf-8", "surrogatepass")


async def _aget(cache: Store, key: Any) -> Any:
    return await cache.aget(key) if isinstance(cache, TieredCache) else cache.get(key)


async def _aset(cache: Store, key: Any, value: Any, ttl: float, tags: tuple[str, ...]) -> None:
    if isinstance(cache, TieredCache):
        await cache.aset(key, value, ttl=ttl, tags=tags)
    else:
        _set(cache, key, value, ttl, tags)


def _set(cache: Store, key: Any, value: Any, ttl: float, tags: tuple[str, ...]) -> None:
    try:
        cache.set(key, value, ttl=ttl, tags=tags)
    except ValueError as error:
        log.debug("a response is not kept: %s", error)


def _invalidate(cache: Store, tags: tuple[str, ...], places: list[tuple[Any, ...]]) -> None:
    if tags:
        cache.invalidate(tag=tags)
    cache.delete_many(places)
