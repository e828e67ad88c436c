"""Responses kept in front of an ASGI or WSGI application.

Law: the application's answer reaches the client as it comes, whether it is kept or not; what fails in the cache costs a hit.
What a mutation made out of date is not served to a request that comes after its answer, nor stored by one that came before it.
"""

from __future__ import annotations

import http.client
import logging
import secrets
import threading
import weakref
from collections.abc import Awaitable, Callable, Generator, Iterable, Iterator, MutableMapping
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
Plan = Generator[tuple[str, tuple[Any, ...], dict[str, Any]], Any, Any]
"""Steps of the cache (method, arguments, options), each answered with what it returned: the same in threads and in coroutines."""
START, BODY = "http.response.start", "http.response.body"
GUARD_S = 3600.0
"""How long a guard lasts (see `_Responses.begin`); when it ends under a request, that one's answer is not stored.  A guess."""
_CONDITIONS = frozenset(f"HTTP_{name.upper().replace('-', '_')}" for name in rules.CONDITIONS)


class _Fetch:
    """A request that the application is answering, and what its answer may be stored with."""

    __slots__ = ("__weakref__", "guard", "is_void", "place", "request", "route", "tags", "token")

    def __init__(self, request: Request, route: Route, tags: tuple[str, ...], guard: Any, token: Any) -> None:
        self.request, self.route, self.tags = request, route, tags
        self.place = rules.address(request, route)
        self.guard, self.token = guard, token
        self.is_void = False


class _Responses:
    """What both kinds of server share: which route, which keys, what is kept."""

    def __init__(self, cache: Store, routes: Iterable[Route]) -> None:
        self.cache = cache
        self.routes = tuple(routes)
        for route in self.routes:
            if not isinstance(route, Route):
                raise TypeError(f"routes: {type(route).__name__} is not a Route")
        if isinstance(cache, TieredCache) and not cache.tier.codec.takes_bytes:
            raise ValueError(
                "a store with JSON cannot keep responses, which are bytes: make the tier with serializer='msgpack' "
                "(pip install msgpack) or 'pickle'"
            )
        self._memory: Cache[Any, Any] = cache.cache if isinstance(cache, TieredCache) else cache
        self._lock = threading.Lock()
        self._fetches: weakref.WeakSet[_Fetch] = weakref.WeakSet()
        self._told: set[tuple[str, type]] = set()

    def route_of(self, request: Request) -> Route | None:
        return next((route for route in self.routes if route.matches(request.path)), None)

    # --- an answer that may be kept

    def begin(self, request: Request, route: Route) -> _Fetch | None:
        """Before the application is asked; None if its answer is not to be kept.

        What `invalidate(tag=...)` removes meanwhile, here or in another process, is seen by a guard: an entry with the same tags,
        one for all requests that have them.
        """
        if request.method != "GET" or not rules.may_serve(request, route):
            return None
        try:
            tags = rules.tags_of(route.tags, request)
            guard = ("http-tags", *sorted(tags))
            token = self._memory.peek(guard)
            if token is None:
                token = secrets.token_hex(8)
                self._memory.set(guard, token, ttl=GUARD_S, tags=tags)
            fetch = _Fetch(request, route, tags, guard, token)
        except Exception as error:
            self._failed("a route's tags, or the cache", error)
            return None
        with self._lock:
            self._fetches.add(fetch)
        return fetch

    def _is_current(self, fetch: _Fetch) -> bool:
        return not fetch.is_void and bool(self._memory.peek(fetch.guard) == fetch.token)

    def kept(self, fetch: _Fetch, response: Response) -> tuple[Response, float | None]:
        """A whole response with its validators, and for how long it is kept; as it is and None if it is not."""
        if not rules.is_whole(response) or len(response.body) > fetch.route.max_item_bytes:
            return response, None
        lifetime = rules.lifetime_s(fetch.request, response, fetch.route, rules.wall_s())
        return (response if lifetime is None else rules.with_validators(response)), lifetime

    def store(self, fetch: _Fetch, response: Response) -> Plan:
        """Keep a response, unless what it shows has been made out of date while it was made."""
        response, lifetime = self.kept(fetch, response)
        if lifetime is None or not self._is_current(fetch):
            return
        request, names = fetch.request, rules.varied(response, fetch.route)
        known = _known(self._memory.peek(fetch.place) if self._memory is self.cache else (yield "get", (fetch.place,), {}))
        generation = secrets.token_hex(8) if known is None else known[0]
        options = {"ttl": lifetime, "tags": fetch.tags}
        key = (*fetch.place, *rules.variant(request, names, generation))
        yield "set", (key, rules.to_plain(response, rules.wall_s())), options
        yield "set", (fetch.place, {"generation": generation, "names": list(names)}), options
        if not self._is_current(fetch):
            yield "delete_many", ([fetch.place],), {}

    # --- what is kept already

    def look_up(self, request: Request, route: Route) -> Plan:
        """A stored response as this client gets it, or None."""
        place = rules.address(request, route)
        known = _known((yield "get", (place,), {}))
        if known is None:
            return None
        generation, names = known
        found = rules.from_plain((yield "get", ((*place, *rules.variant(request, names, generation)),), {}))
        return None if found is None else rules.answered(request, found[0], "HIT", max(0.0, rules.wall_s() - found[1]))

    def forget(self, request: Request, status: int | None) -> Plan:
        """What a request has made out of date: by tag, and at its address: without its generation no variant is found."""
        if request.method in rules.SAFE_METHODS or status is None or not 200 <= status < 400:
            return
        routes = [route for route in self.routes if route.matches(request.path)]
        places = {rules.address(request, route) for route in routes}
        tags: list[str] = []
        for route in routes:
            try:
                tags += rules.tags_of(route.invalidates, request)
            except Exception as error:
                self._failed("what a route invalidates", error)
        with self._lock:
            for fetch in list(self._fetches):
                fetch.is_void = fetch.is_void or fetch.place in places
        if tags:
            yield "invalidate", (), {"tag": tags}
        yield "delete_many", (places,), {}

    # --- the cache

    def run(self, plan: Plan) -> Any:
        """Take the steps; one that fails is answered with None."""
        step, value = self._next(plan, None)
        while step is not None:
            method, arguments, options = step
            try:
                value = getattr(self.cache, method)(*arguments, **options)
            except Exception as error:
                value = self._failed_step(method, error)
            step, value = self._next(plan, value)
        return value

    async def arun(self, plan: Plan) -> Any:
        """As `run`, in a coroutine."""
        if not isinstance(self.cache, TieredCache):
            return self.run(plan)
        step, value = self._next(plan, None)
        while step is not None:
            method, arguments, options = step
            try:
                value = await getattr(self.cache, f"a{method}")(*arguments, **options)
            except Exception as error:
                value = self._failed_step(method, error)
            step, value = self._next(plan, value)
        return value

    def _next(self, plan: Plan, answer: Any) -> tuple[Any, Any]:
        """The next step, or None and what the plan came to."""
        try:
            return plan.send(answer), None
        except StopIteration as end:
            return None, end.value
        except Exception as error:
            self._failed("the rules", error)
            return None, None

    def _failed_step(self, method: str, error: Exception) -> Any:
        """What a step that failed is answered with."""
        if method == "set" and isinstance(error, ValueError):
            log.debug("a response is not kept: %s", error)  # too large, which is no failure
        else:
            self._failed(f"{type(self.cache).__name__}.{method}()", error)
        return None

    def _failed(self, what: str, error: Exception) -> None:
        """The client must not suffer from it, nor the log overflow."""
        if (what, type(error)) not in self._told:
            self._told.add((what, type(error)))
            log.warning("cached responses: %s failed; this is logged once", what, exc_info=error)


def _known(entry: Any) -> tuple[str, list[str]] | None:
    """Generation and names of an address's entry."""
    try:
        return str(entry["generation"]), [str(name) for name in entry["names"]]
    except (TypeError, KeyError):
        return None


class ASGIResponseCache:
    """Keeps responses of an ASGI application.

        app = ASGIResponseCache(app, LRUCache(1000, max_bytes="64MB"), [Route("/feed", 60)])

    Args:
        cache: where they are kept; with a `TieredCache`, give it `serializer="msgpack"`: bodies are bytes.
        routes: the first that matches a request's path counts; without one it is passed on.

    Every answer of a route says in `X-Cache` what happened: HIT, MISS or BYPASS.  The start of an answer that may be kept waits for
    the first of its body if it is a 200 without an `ETag`, and no `text/event-stream`; no server needs to send it before
    (ASGI, "Response Start").  Files that the server sends by itself, trailers, and what else is not a body are passed on.
    """

    def __init__(self, app: Any, cache: Store, routes: Iterable[Route]) -> None:
        self.app = app
        self._responses = _Responses(cache, routes)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        responses = self._responses
        request = _request_of(scope) if scope["type"] == "http" else None
        route = None if request is None else responses.route_of(request)
        if request is None or route is None:
            await self.app(scope, receive, send)
            return
        if rules.may_look_up(request, route):
            found = await responses.arun(responses.look_up(request, route))
            if found is not None:
                await _send(send, found)
                return
        if _wants_kept_only(request, route):
            await _send(send, _NOT_KEPT)
            return
        fetch = responses.begin(request, route)
        answers = fetch is not None and rules.asks_for_all(request, route)
        if answers:
            headers = [pair for pair in scope["headers"] if bytes(pair[0]).lower().decode("latin-1") not in rules.CONDITIONS]
            scope = {**scope, "headers": headers}
        await _Passing(responses, request, route, send, fetch, answers=answers).run(self.app, scope, receive)


class _Passing:
    """One answer on its way from the application to the client, and into the cache if it may."""

    def __init__(
        self, responses: _Responses, request: Request, route: Route, send: Send, fetch: _Fetch | None, *, answers: bool
    ) -> None:
        self._responses, self._request, self._route, self._send = responses, request, route, send
        self._fetch = fetch
        """None once it is clear that nothing will be kept."""
        self._answers = answers
        """Whether the application was not told of the client's `If-None-Match`."""
        self._has_answered = False
        """The client has got its 304; what the application still says is for the cache only."""
        self._start: Any = None
        self._head: Response | None = None
        self._body = bytearray()

    async def run(self, app: Any, scope: Scope, receive: Receive) -> None:
        try:
            await app(scope, receive, self._forward)
            await self._flush()
        finally:
            await self._forget()  # again: what ran on after the answer may have changed something, too

    async def _forward(self, message: Any) -> None:
        if message["type"] == START:
            await self._take_start(message)
        elif message["type"] == BODY:
            await self._take_body(message)
        elif self._head is None:
            await self._out(message)  # early hints, and what else comes before a response
        else:
            self._give_up()
            await self._flush()
            if not self._has_answered:
                await self._out(message)

    async def _take_start(self, message: Any) -> None:
        self._head = head = Response(message["status"], _decoded(message.get("headers", ())), b"")
        if self._fetch is not None and (
            message.get("trailers")
            or rules.is_too_large(head, self._route)
            or rules.lifetime_s(self._request, head, self._route, rules.wall_s()) is None
        ):
            self._give_up()
        if self._answers and rules.is_unchanged(self._request, head):
            self._has_answered = True
            await self._respond(head)
            return
        self._start = message
        is_mutation = self._request.method not in rules.SAFE_METHODS
        if not is_mutation and not (self._fetch is not None and rules.gains_by_waiting(head)):
            await self._flush()

    async def _take_body(self, message: Any) -> None:
        body, is_last = message.get("body", b""), not message.get("more_body", False)
        if self._fetch is not None and self._head is not None:
            self._body += body
            if len(self._body) > self._route.max_item_bytes:
                self._give_up()
            elif is_last and self._start is not None:
                response, lifetime = self._responses.kept(self._fetch, self._head._replace(body=bytes(self._body)))
                if lifetime is not None:
                    self._start = None
                    await self._respond(response)
                    await self._keep()
                    return
        if not self._has_answered:
            if self._start is not None:
                await self._flush()
            elif is_last:
                await self._forget()
            await self._out(message)
        if is_last:
            await self._keep()

    async def _flush(self) -> None:
        """Send the start, if it waits."""
        if self._start is not None:
            start, self._start = self._start, None
            await self._forget()  # before the client can know, and ask again
            word = _word(self._request, self._route).encode()
            await self._out({**start, "headers": [*start.get("headers", ()), (b"x-cache", word)]})

    async def _respond(self, response: Response) -> None:
        await _send(self._out, rules.answered(self._request, response, "MISS", None))

    async def _out(self, message: Any) -> None:
        try:
            await self._send(message)
        except BaseException:
            self._give_up()  # the client has gone
            raise

    def _give_up(self) -> None:
        self._fetch = None
        self._body.clear()

    async def _keep(self) -> None:
        if self._fetch is not None and self._head is not None:
            await self._responses.arun(self._responses.store(self._fetch, self._head._replace(body=bytes(self._body))))
        self._give_up()

    async def _forget(self) -> None:
        await self._responses.arun(self._responses.forget(self._request, None if self._head is None else self._head.status))


class WSGIResponseCache:
    """Keeps responses of a WSGI application; see `ASGIResponseCache`.

    An answer in parts is passed on part by part.  Only one that is known to be whole (a list or tuple, anything of length 1, or a
    first part as long as `Content-Length` says) gets an `ETag` made of its body.  The path is as the server has decoded it: WSGI
    does not tell `%2F` from `/`.
    """

    def __init__(self, app: Any, cache: Store, routes: Iterable[Route]) -> None:
        self.app = app
        self._responses = _Responses(cache, routes)

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        responses = self._responses
        request = _request_of_environ(environ)
        route = responses.route_of(request)
        if route is None:
            return self.app(environ, start_response)  # type: ignore[no-any-return]
        if rules.may_look_up(request, route):
            found = responses.run(responses.look_up(request, route))
            if found is not None:
                return _start(start_response, found)
        if _wants_kept_only(request, route):
            return _start(start_response, _NOT_KEPT)
        fetch = responses.begin(request, route)
        answers = fetch is not None and rules.asks_for_all(request, route)
        if answers:
            # A copy: the server's own must not lose them.
            environ = {name: value for name, value in environ.items() if name not in _CONDITIONS}
        return _WSGIPassing(responses, request, route, start_response, fetch, answers=answers).run(self.app, environ)


class _WSGIPassing:
    """As `_Passing`, for WSGI."""

    def __init__(
        self, responses: _Responses, request: Request, route: Route, start_response: Any, fetch: _Fetch | None, *, answers: bool
    ) -> None:
        self._responses, self._request, self._route, self._start_response = responses, request, route, start_response
        self._fetch, self._answers, self._has_answered = fetch, answers, False
        self._told: Any = None
        self._head: Response | None = None
        self._has_begun = False
        self._has_forgotten = False
        self._write: Any = None
        self._body = bytearray()

    def run(self, app: Any, environ: dict[str, Any]) -> Iterable[bytes]:
        is_mutation = self._request.method not in rules.SAFE_METHODS
        try:
            parts = app(environ, self._note)
        finally:
            self._forget()
        if self._head is None:
            return _Rest(self._pass_on(parts), parts, self._forget)
        is_list = type(parts) in (list, tuple)
        if self._fetch is None:
            if self._has_answered:
                _close(parts)
                return []
            if is_list or not is_mutation:
                return parts  # type: ignore[no-any-return]  # as it is: the server may know it (`wsgi.file_wrapper`)
        elif is_list or _length(parts) == 1:
            return self._pass_whole(parts)
        return _Rest(self._pass_on(parts), parts, self._forget)

    def _note(self, status: str, headers: list[tuple[str, str]], exc_info: Any = None) -> Any:
        """What the application is given as `start_response`."""
        if self._told is not None and exc_info is None:
            raise AssertionError("start_response was called twice")
        self._told = status, list(headers)
        self._head = head = Response(int(status.split(None, 1)[0]), tuple((name.lower(), value) for name, value in headers), b"")
        if exc_info is not None:
            self._give_up()
            self._has_answered = False
            try:
                self._begin(exc_info)
            finally:
                exc_info = None
            return self._take_written
        if self._fetch is not None and (
            rules.is_too_large(head, self._route) or rules.lifetime_s(self._request, head, self._route, rules.wall_s()) is None
        ):
            self._give_up()
        if self._answers and rules.is_unchanged(self._request, head):
            self._respond(head)
        elif self._fetch is None or not rules.gains_by_waiting(head):
            self._begin()
        return self._take_written

    def _begin(self, *exc_info: Any) -> None:
        status, headers = self._told
        self._has_begun = True
        self._write = self._start_response(status, [*headers, ("X-Cache", _word(self._request, self._route))], *exc_info)

    def _respond(self, response: Response) -> bytes:
        """Tell the server of an answer of ours; returns its body."""
        answer = rules.answered(self._request, response, "MISS", None)
        self._has_begun, self._has_answered = True, answer.status == 304
        if answer.status == response.status:
            reason = str(self._told[0])
            self._write = self._start_response(reason, list(answer.headers))
        else:
            self._write = self._start_response(_line(answer.status), list(answer.headers))
        return answer.body

    def _take_written(self, part: bytes) -> None:
        """What the application is given as `write`: goes out at once, before the parts that follow."""
        if not self._has_forgotten:
            self._forget()
        if not self._has_begun:
            self._begin()
        self._collect(part)
        if not self._has_answered:
            self._write(part)

    def _pass_whole(self, parts: Any) -> Iterable[bytes]:
        try:
            pieces = list(parts)
        except BaseException:
            _close(parts)
            raise
        for piece in pieces:
            self._collect(piece)
        if not self._has_begun and self._fetch is not None and self._head is not None:
            response, lifetime = self._responses.kept(self._fetch, self._head._replace(body=bytes(self._body)))
            if lifetime is not None:
                pieces = [self._respond(response)]
        if not self._has_begun:
            self._begin()
        self._keep()
        return _Whole([] if self._has_answered else pieces, parts)

    def _pass_on(self, parts: Any) -> Iterator[bytes]:
        try:
            for part in parts:
                if not self._has_forgotten:
                    self._forget()
                own = self._passed(part)
                if not self._has_answered:
                    yield own
        finally:
            self._forget()
        if not self._has_begun and self._told is not None:
            self._begin()
        self._keep()

    def _passed(self, part: bytes) -> bytes:
        """What the client gets of a part."""
        self._collect(part)
        if self._has_begun or self._head is None:
            return part
        said = self._head.header("content-length")
        if self._fetch is not None and said is not None and said == str(len(part)):
            response, lifetime = self._responses.kept(self._fetch, self._head._replace(body=part))
            if lifetime is not None:
                return self._respond(response)
        self._begin()
        return part

    def _collect(self, part: bytes) -> None:
        if self._fetch is not None:
            self._body += part
            if len(self._body) > self._route.max_item_bytes:
                self._give_up()

    def _give_up(self) -> None:
        self._fetch = None
        self._body.clear()

    def _keep(self) -> None:
        if self._fetch is not None and self._head is not None:
            self._responses.run(self._responses.store(self._fetch, self._head._replace(body=bytes(self._body))))
        self._give_up()

    def _forget(self) -> None:
        if self._head is not None:
            self._has_forgotten = True
            self._responses.run(self._responses.forget(self._request, self._head.status))


class _Rest:
    """A WSGI answer in parts, passed on as they come; closing it closes the application's."""

    def __init__(self, passing: Iterator[bytes], parts: Any, forget: Callable[[], None]) -> None:
        self._passing, self._parts, self._forget = passing, parts, forget

    def __iter__(self) -> Iterator[bytes]:
        return self._passing

    def close(self) -> None:
        """The server has sent it all, or the client has gone."""
        try:
            _close(self._passing)
            _close(self._parts)
        finally:
            self._forget()


class _Whole:
    """A WSGI answer that is all there; its length tells the server."""

    def __init__(self, pieces: list[bytes], parts: Any) -> None:
        self._pieces, self._parts = pieces, parts

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._pieces)

    def __len__(self) -> int:
        return len(self._pieces)

    def close(self) -> None:
        _close(self._parts)


_NOT_KEPT = Response(504, (("content-length", "0"), ("x-cache", "MISS")), b"")


def _wants_kept_only(request: Request, route: Route) -> bool:
    return rules.may_serve(request, route) and "only-if-cached" in rules.directives(request.headers.get("cache-control"))


def _word(request: Request, route: Route) -> str:
    return "MISS" if rules.may_serve(request, route) else "BYPASS"


def _length(parts: Any) -> int | None:
    try:
        return len(parts)
    except Exception:
        return None  # it has none, or what is wrong with it is seen when it is iterated over


def _line(status: int) -> str:
    return f"{status} {http.client.responses.get(status, 'Unknown')}"


def _close(parts: Any) -> None:
    close = getattr(parts, "close", None)
    if close is not None:
        close()


def _start(start_response: Any, response: Response) -> Iterable[bytes]:
    headers = [(name, value) for name, value in response.headers]
    start_response(_line(response.status), headers)
    return [response.body] if response.body else []


async def _send(send: Send, response: Response) -> None:
    headers = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in response.headers]
    await send({"type": START, "status": response.status, "headers": headers})
    await send({"type": BODY, "body": response.body})


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
