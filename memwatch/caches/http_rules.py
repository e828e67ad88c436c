"""What of HTTP may be kept, for how long, and for whom: decisions only, no server, no cache.

Law: in doubt nothing is kept.  What a request's `Authorization` or `Cookie`, or a response's `Set-Cookie`, `private`, `no-store`,
`no-cache` or `Vary: *` touches is kept only if the response or the route says so.
Source: RFC 9111 (a shared cache), RFC 9110 section 13 (conditional requests).
"""

from __future__ import annotations

import hashlib
import re
import string
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from email.utils import formatdate, parsedate_to_datetime
from fnmatch import fnmatchcase
from operator import itemgetter
from typing import Any, NamedTuple
from urllib.parse import parse_qsl, quote, urlencode

from memwatch.caches.engine import seconds_of

KEPT_STATUSES = frozenset({200, 203, 204, 300, 301, 404, 410})
"""Kept for a route's *ttl*; other final statuses only with a lifetime of their own, and those of `NEVER_KEPT` never."""
NEVER_KEPT = frozenset({206, 304, 401, 407, 408, 412, 416, 417, 421, 425, 428, 429, 431, 511})
"""Answers to one request's range, validators, credentials, connection or rate: no whole response of the address (RFC 9111
section 3; RFC 6585 forbids the last four)."""
CONDITIONS = frozenset({"if-none-match", "if-modified-since"})
"""What the cache answers itself, from a whole response."""
ENTITY_HEADERS = frozenset({"content-length", "content-type", "content-encoding", "content-language", "content-range"})
"""What describes a body, and is left out of a 304 (RFC 9110 section 15.4.5)."""
SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS", "TRACE"})
UNRESERVED = (string.ascii_letters + string.digits + "-._~").encode()
MOST_ITEM_BYTES = 1024 * 1024
NOT_REPEATED = frozenset(
    {"connection", "keep-alive", "transfer-encoding", "te", "trailer", "upgrade", "proxy-authenticate", "age", "x-cache"}
)
"""Headers that belong to one transfer."""


class Request(NamedTuple):
    """What the rules need of a request."""

    method: str
    scheme: str
    host: str
    path: str
    query: str
    headers: Mapping[str, str]
    """Lower-case names; several of a name joined with commas."""
    target: str = ""
    """The path as far as the application can tell it from others: not decoded, where the server gives it so."""


class Response(NamedTuple):
    """A whole response, as it is kept."""

    status: int
    headers: tuple[tuple[str, str], ...]
    body: bytes

    def header(self, name: str) -> str | None:
        """Values of a header, joined; None if it has none."""
        values = [value for known, value in self.headers if known == name]
        return ", ".join(values) if values else None


Tags = Iterable[str] | Callable[[Request], Iterable[str] | str]


@dataclass(frozen=True, slots=True)
class Route:
    """What is done with requests whose path matches.

    Args:
        path: a shell pattern of the path, such as `"/feed/*"`.
        ttl: seconds, or text such as `"5m"`, where the response does not say; None: only what the response says is kept.
        tags: what `invalidate(tag=…)` finds the responses by, or a function of the request.
        invalidates: tags that a successful request with another method than GET invalidates, or a function of the request.
        vary: request headers that make different responses, besides those that the response names.
        query: the parameters of the query that count; None for the whole query.
        authenticated: whether responses to requests with `Authorization` may be kept, and given to everybody.
        cookies: whether responses to requests with cookies, or that set cookies, may be kept, and given to everybody.
        max_item_bytes: larger responses are passed on and not kept.
    """

    path: str
    ttl: float | str | None = None
    tags: Tags = ()
    invalidates: Tags = ()
    vary: tuple[str, ...] = ()
    query: tuple[str, ...] | None = None
    authenticated: bool = False
    cookies: bool = False
    max_item_bytes: int = MOST_ITEM_BYTES

    def __post_init__(self) -> None:
        if isinstance(self.ttl, str):
            object.__setattr__(self, "ttl", seconds_of("ttl", self.ttl))
        if self.ttl is not None and (isinstance(self.ttl, bool) or not isinstance(self.ttl, int | float) or not self.ttl >= 0):
            raise ValueError(f"ttl: {self.ttl!r} is not a number of seconds, nor such as '5m'")

    def matches(self, path: str) -> bool:
        """Whether it is for this path."""
        return fnmatchcase(path, self.path)


def directives(value: str | None) -> dict[str, str | None]:
    """A `Cache-Control` header by directive."""
    found: dict[str, str | None] = {}
    for part in (value or "").split(","):
        name, _, argument = part.strip().partition("=")
        if name:
            found[name.strip().lower()] = argument.strip().strip('"') or None
    return found


def seconds(value: str | None) -> float | None:
    """A directive's number; None for none, 0 for one that cannot be read: stale."""
    if value is None:
        return None
    return float(value) if value.isascii() and value.isdigit() else 0.0


def may_serve(request: Request, route: Route) -> bool:
    """Whether this request may be answered from what is kept, and its answer be kept."""
    control = directives(request.headers.get("cache-control"))
    if request.method not in ("GET", "HEAD") or "no-store" in control:
        return False
    if request.headers.keys() & {"range", "if-match", "if-unmodified-since"}:
        return False  # the application's to judge
    return route.cookies or "cookie" not in request.headers


def must_ask(request: Request) -> bool:
    """Whether the client wants the origin's answer, of now."""
    control = directives(request.headers.get("cache-control"))
    return "no-cache" in control or control.get("max-age") == "0" or (not control and request.headers.get("pragma") == "no-cache")


def lifetime_s(request: Request, response: Response, route: Route, now_s: float) -> float | None:
    """For how long a response may be kept, and for everybody; None for not at all."""
    control = directives(response.header("cache-control"))
    if request.method != "GET" or {"no-store", "private", "no-cache"} & control.keys():
        return None
    if not 200 <= response.status < 600 or response.status in NEVER_KEPT:
        return None
    is_public = "public" in control or "s-maxage" in control
    if "authorization" in request.headers and not (route.authenticated or is_public or "must-revalidate" in control):
        return None
    if response.header("set-cookie") is not None and not route.cookies:
        return None
    if response.header("vary") is not None and "*" in varied(response, route):
        return None
    said = seconds(control.get("s-maxage"))
    if said is None:
        said = seconds(control.get("max-age"))
    if said is None and response.header("expires") is not None:
        said = _until(response.header("expires"), response.header("date"), now_s)
    if said is None:
        said = float(route.ttl) if route.ttl is not None and response.status in KEPT_STATUSES else None
    if said is None:
        return None
    age = seconds(response.header("age")) or 0.0
    return said - age if said > age else None


def _until(expires: str | None, date: str | None, now_s: float) -> float:
    try:
        begins = parsedate_to_datetime(date).timestamp() if date else now_s
        return max(0.0, parsedate_to_datetime(str(expires)).timestamp() - begins)
    except (ValueError, TypeError, OverflowError):
        return 0.0  # such as `Expires: 0`


def is_whole(response: Response) -> bool:
    """Whether the body is as long as the response says; one that says nothing, or several times the same, is."""
    said = {part.strip() for part in (response.header("content-length") or str(len(response.body))).split(",")}
    return said == {str(len(response.body))}


def may_look_up(request: Request, route: Route) -> bool:
    """Whether what is kept may be this client's answer."""
    return may_serve(request, route) and ("authorization" not in request.headers or route.authenticated) and not must_ask(request)


def is_too_large(response: Response, route: Route) -> bool:
    """Whether the response says so before its body comes."""
    said = response.header("content-length") or ""
    return said.isascii() and said.isdigit() and int(said) > route.max_item_bytes


def gains_by_waiting(response: Response) -> bool:
    """Whether the first of the body is worth waiting for: if it is all, the client gets an `ETag` that is made of it."""
    media = (response.header("content-type") or "").strip().lower()
    return response.status == 200 and response.header("etag") is None and not media.startswith("text/event-stream")


def asks_for_all(request: Request, route: Route) -> bool:
    """Whether the application is to be asked without the client's `If-None-Match` and `If-Modified-Since`.

    Where its answer may be kept a 304 would be of no use to others: the cache gets the whole response and answers 304 itself.
    """
    if request.method != "GET" or not may_serve(request, route) or not request.headers.keys() & CONDITIONS:
        return False
    return "authorization" not in request.headers or route.authenticated


def varied(response: Response, route: Route) -> tuple[str, ...]:
    """The request headers on which the response depends."""
    named = [name.strip().lower() for name in (response.header("vary") or "").split(",")]
    return tuple(sorted({name for name in (*named, *map(str.lower, route.vary)) if name}))


def address(request: Request, route: Route) -> tuple[str, ...]:
    """What is asked for: the same for GET and HEAD, and never the same for what the application can tell apart."""
    query = request.query
    # An application may read `;` as `&`, so a query with one counts whole.
    if route.query is not None and ";" not in query:
        # Latin-1 has a character for every byte: nothing is lost, as it would be with bytes that are no UTF-8.
        wanted = {name.encode().decode("latin-1") for name in route.query}
        pairs = [pair for pair in parse_qsl(query, keep_blank_values=True, encoding="latin-1") if pair[0] in wanted]
        # Stably: of a parameter that comes twice, the application may take the first or the last.
        query = urlencode(sorted(pairs, key=itemgetter(0)), encoding="latin-1")
    return ("http", request.scheme, host_of(request), request.target or request.path, query)


def host_of(request: Request) -> str:
    """The host, in lower case and without the port that goes without saying."""
    default = {"http": ":80", "https": ":443"}.get(request.scheme)
    host = request.host.strip().lower()
    return host.removesuffix(default) if default is not None else host


def target_of(root: bytes, path: bytes, raw: bytes | None = None) -> str:
    """A path for `Request.target`.

    Args:
        root: what the application is mounted at; part of it, for the application can tell `/a` at the root from `/` at `/a`.
        path: decoded; part of it, for something in front of the application may have rewritten it.
        raw: as the client wrote it, if the server tells: then `%2F` stays different from `/`.

    Source: RFC 3986 section 6.2.2, for what is the same in *raw*.
    """

    def plain(match: re.Match[bytes]) -> bytes:
        octet = bytes.fromhex(match[1].decode())
        return octet if octet in UNRESERVED else match[0].upper()

    written = "" if raw is None else quote(re.sub(rb"%([0-9A-Fa-f]{2})", plain, raw), safe=string.punctuation)
    return f"{quote(root)} {quote(path)} {written}"


def variant(request: Request, names: Iterable[str], generation: str) -> tuple[str, ...]:
    """What makes this client's answer differ from another's; *generation* is the address's until something makes it out of date."""
    return ("variant", generation, *(f"{name}={' '.join(request.headers.get(name, '').split())}" for name in names))


def with_validators(response: Response) -> Response:
    """With an `ETag`, if it has none and its body is known; strong, for it is made of the bytes."""
    if response.header("etag") is not None or response.status != 200:
        return response
    tag = f'"{hashlib.sha256(response.body).hexdigest()[:32]}"'
    return response._replace(headers=(*response.headers, ("etag", tag)))


def is_unchanged(request: Request, response: Response) -> bool:
    """Whether the client has it already: 304."""
    if response.status != 200:
        return False
    wanted = request.headers.get("if-none-match")
    if wanted is not None:
        have = _weakly(response.header("etag") or "")
        return wanted.strip() == "*" or have in {_weakly(part.strip()) for part in wanted.split(",")} - {""}
    since, changed = request.headers.get("if-modified-since"), response.header("last-modified")
    if since is None or changed is None:
        return False
    try:
        return parsedate_to_datetime(changed) <= parsedate_to_datetime(since)
    except (ValueError, TypeError):
        return False


def _weakly(tag: str) -> str:
    return tag.removeprefix("W/")


def answered(request: Request, response: Response, word: str, age_s: float | None) -> Response:
    """A response as this client gets it: 304 if it has it, without a body for HEAD, with what the cache did."""
    headers = [*response.headers, ("x-cache", word)]
    if age_s is not None:
        headers.append(("age", str(int(age_s))))
    if is_unchanged(request, response):
        # All but what describes the body: a browser also wants the headers of CORS on a 304.
        return Response(304, tuple((name, value) for name, value in headers if name not in ENTITY_HEADERS), b"")
    return Response(response.status, tuple(headers), b"" if request.method == "HEAD" else response.body)


def tags_of(tags: Tags, request: Request) -> tuple[str, ...]:
    """Tags of a request."""
    found = tags(request) if callable(tags) else tags
    return (found,) if isinstance(found, str) else tuple(found)


def to_plain(response: Response, now_s: float) -> dict[str, Any]:
    """As it is stored."""
    headers = [[name, value] for name, value in response.headers if name not in NOT_REPEATED]
    if response.header("date") is None:
        headers.append(["date", formatdate(now_s, usegmt=True)])
    if response.header("content-length") is None and response.status != 204:
        headers.append(["content-length", str(len(response.body))])
    return {"status": response.status, "headers": headers, "body": response.body, "at": now_s}


def from_plain(stored: Any) -> tuple[Response, float] | None:
    """A stored response and when it was stored; None for what is none."""
    try:
        headers = tuple((str(name), str(value)) for name, value in stored["headers"])
        return Response(int(stored["status"]), headers, bytes(stored["body"])), float(stored["at"])
    except (TypeError, KeyError, ValueError):
        return None


def wall_s() -> float:
    """Unix time: what is stored may be read by another process."""
    return time.time()
