"""Health and memory of this process over HTTP, as a function from request to response; `memwatch.integrations` and the live socket
carry it.

Law: what shows internals or changes something needs a token in a header, and without a token set it is not there; no response says
more than its reader may know; nothing here raises.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import parse_qsl

from memwatch.access import bearer, host_names, is_our_host, is_token, token_of

if TYPE_CHECKING:
    from memwatch.watcher import Watcher

READY_S = 300.0
"""Not ready when memory runs out within this time: a load balancer that sends no more work gives the process a chance."""
QUERY_MOST = 4096
NO_TOKEN_NEEDED = frozenset({"/health"})


@dataclass(frozen=True, slots=True)
class Request:
    """What is asked, whoever carries it.

    Args:
        path: below the place where the endpoints are mounted; begins with `/`.
        query: as it stands in the address, without `?`.
        headers: names in lower case.
        trusted: the peer is known to be the same user (the live socket); no token and no host are asked for.
    """

    method: str
    path: str
    query: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)
    trusted: bool = False


class Response(NamedTuple):
    """What is answered."""

    status: int
    body: bytes
    content_type: str = "application/json"
    headers: tuple[tuple[str, str], ...] = ()
    length: int | None = None
    """Of the body, where it is not sent (HEAD)."""

    @property
    def content_length(self) -> int:
        """What the header of that name says."""
        return len(self.body) if self.length is None else self.length


class Refused(Exception):
    """A request that is not answered as asked: status and one sentence."""

    def __init__(self, status: int, detail: str, *headers: tuple[str, str]) -> None:
        super().__init__(detail)
        self.status, self.detail, self.headers = status, detail, headers


_Answer = Callable[["Endpoints", Mapping[str, str]], Any]


class Endpoints:
    """The endpoints of one process.

    Args:
        token: what a header must hold (`Authorization: Bearer …`) for everything but `/health`; None: only `/health` is there.
        hosts: names that the Host header may have besides `localhost` and addresses in figures (a page of another site that
            resolves to this machine has a name); `["*"]` allows all.
        public: paths that need no token to be read besides `/health`, such as `["/metrics"]`.
        watcher: gives the watcher, or None while there is none.
        control: whether the trusted may change something (the live socket's setting).

    Raises:
        ValueError: the token is short enough to be guessed, or a public path is none of ours.
    """

    def __init__(
        self,
        *,
        token: str | None = None,
        hosts: Iterable[str] = (),
        public: Iterable[str] = (),
        watcher: Callable[[], Watcher | None],
        control: bool = True,
    ) -> None:
        if isinstance(hosts, str) or isinstance(public, str):
            raise ValueError("hosts and public are lists")
        self._token = None if token is None else token_of(token)
        self._hosts = host_names(hosts)
        self._public = NO_TOKEN_NEEDED | frozenset(public)
        unknown = self._public - set(PATHS)
        if unknown:
            raise ValueError(f"public: {sorted(unknown)[0]!r} is none of {', '.join(sorted(PATHS))}")
        self._watcher = watcher
        self._control = control

    def answer(self, request: Request) -> Response:
        """Answer one request; never raises.

        Cost: `/health` some 10 µs (bench/services.py); `/memory/report` reads the record: call it from a thread where that matters.
        """
        head = request.method == "HEAD"
        try:
            response = self._answer(request)
        except Refused as error:
            response = Response(error.status, _json({"error": error.detail}), headers=tuple(error.headers))
        except Exception as error:  # ours, not the caller's: said without what it holds
            response = Response(500, _json({"error": f"memwatch failed: {type(error).__name__}"}))
        fixed = (("Cache-Control", "no-store"), ("X-Content-Type-Options", "nosniff"))
        response = response._replace(headers=(*response.headers, *fixed))
        return response._replace(body=b"", length=len(response.body)) if head else response

    def _answer(self, request: Request) -> Response:
        path = request.path.rstrip("/") or "/"
        methods = PATHS.get(path)
        method = "GET" if request.method == "HEAD" else request.method
        if not request.trusted:
            self._admit(request, path)
        if methods is None:
            raise Refused(404, "there is nothing here")
        if method not in methods:
            raise Refused(405, f"{path} answers {' and '.join(methods)}", ("Allow", ", ".join(methods)))
        if request.trusted and method != "GET" and not self._control:
            raise Refused(403, "this process answers reads only; start it with MEMWATCH_SOCKET=control")
        endpoint = methods[method]
        found = endpoint.answer(self, _parameters(request.query, endpoint.parameters))
        return found if isinstance(found, Response) else Response(200, _json(found))

    def _admit(self, request: Request, path: str) -> None:
        """Whether the peer may ask for this."""
        # What is public is public to read: a page of another site may not empty the caches because a scraper may see them.
        if path in self._public and (request.method in ("GET", "HEAD") or request.method not in PATHS[path]):
            return
        if self._token is None:
            raise Refused(404, "there is nothing here")
        if not is_our_host(request.headers.get("host", ""), self._hosts):
            raise Refused(421, "this host name is not answered; allow it with hosts=[…]")
        given = bearer(request.headers.get("authorization", ""))
        if given is None:
            raise Refused(401, "a token is needed: Authorization: Bearer …", ("WWW-Authenticate", "Bearer"))
        if not is_token(given, self._token):
            raise Refused(403, "not this token")

    def _watching(self) -> Watcher:
        watcher = self._watcher()
        if watcher is None:
            raise Refused(503, "nothing is watched: memwatch.start() was not called, or has been stopped")
        return watcher

    # -- answers ---------------------------------------------------------------------------------------------------------------

    def _health(self, _: Mapping[str, str]) -> Response:
        status, _why = self._readiness()
        return Response(503 if status == "overloaded" else 200, _json({"status": status}))

    def _readiness(self) -> tuple[str, str]:
        watcher = self._watcher()
        if watcher is None:
            return "unwatched", "nothing is watched"
        if watcher.pressure_level == "critical":
            return "overloaded", "memory is at the critical level"
        verdict = watcher.verdict
        left_s = verdict.exhausted_in_s
        if left_s is not None and left_s < READY_S and verdict.state in ("growing", "leaking"):
            return "overloaded", f"memory runs out in {left_s:.0f} s"
        if not watcher.samples:
            return "starting", "no sample was taken yet"
        return "ok", verdict.reason

    def _detailed(self, _: Mapping[str, str]) -> Response:
        watcher = self._watching()
        status, why = self._readiness()
        statistics = watcher.statistics()
        found = {
            "status": status,
            "why": why,
            "verdict": watcher.verdict.to_dict(),
            "pressure": watcher.pressure_level,
            "samples": statistics.samples,
            "uptime_s": statistics.uptime_s,
            "failures": dict(watcher.failures),
        }
        return Response(503 if status == "overloaded" else 200, _json(found))

    def _memory(self, _: Mapping[str, str]) -> Any:
        watcher = self._watching()
        return {
            "snapshot": watcher.snapshot().to_dict(),
            "trend": watcher.verdict.to_dict(),
            "statistics": watcher.statistics().to_dict(),
        }

    def _snapshot(self, _: Mapping[str, str]) -> Any:
        return self._watching().snapshot().to_dict()

    def _trend(self, given: Mapping[str, str]) -> Any:
        try:
            return self._watching().trend(given.get("channel", "rss")).to_dict()
        except KeyError as error:
            raise Refused(404, str(error.args[0])) from None

    def _statistics(self, _: Mapping[str, str]) -> Any:
        return self._watching().statistics().to_dict()

    def _report(self, given: Mapping[str, str]) -> Response:
        from memwatch import report as reports

        format_ = given.get("format", "json")
        if format_ not in REPORT_TYPES:
            raise Refused(400, f"format: {format_[:40]!r} is not one of {', '.join(REPORT_TYPES)}")
        text = reports.render(self._watching().report(), format_)
        return Response(200, text.encode(), REPORT_TYPES[format_])

    def _caches(self, given: Mapping[str, str]) -> Any:
        from memwatch import caches

        return {"caches": [item.to_dict() for item in caches.stats().values() if given.get("name") in (None, item.name)]}

    def _invalidate(self, given: Mapping[str, str]) -> Any:
        from memwatch import caches

        chosen = {key: given[key] for key in ("tag", "prefix", "pattern") if key in given}
        if len(chosen) != 1:
            raise Refused(400, "give one of tag, prefix or pattern")
        wanted = [cache for cache in caches.all() if given.get("name") in (None, cache.name)]
        if not wanted and "name" in given:
            raise Refused(404, f"no cache has the name {given['name'][:80]!r}")
        return {"removed": sum(cache.invalidate(**chosen) for cache in wanted), "caches": len(wanted)}

    def _collect(self, _: Mapping[str, str]) -> Any:
        from memwatch.vitals import collect_garbage

        return collect_garbage().to_dict()

    def _metrics(self, _: Mapping[str, str]) -> Response:
        try:
            from memwatch.sinks.prometheus import CONTENT_TYPE, exposition
        except ImportError:
            raise Refused(404, "metrics need prometheus_client: pip install 'memwatch[prometheus]'") from None
        return Response(200, exposition(self._watching()), CONTENT_TYPE)

    def _openapi(self, _: Mapping[str, str]) -> Any:
        return openapi()


class Endpoint(NamedTuple):
    """One method of one path."""

    answer: _Answer
    what: str
    parameters: Mapping[str, str] = {}
    """Names in the query, and what each means."""
    statuses: Mapping[int, str] = {}


REPORT_TYPES = {
    "json": "application/json",
    "text": "text/plain; charset=utf-8",
    "markdown": "text/markdown; charset=utf-8",
}
_NAME = {"name": "only the cache of this name"}

PATHS: Mapping[str, Mapping[str, Endpoint]] = {
    "/health": {"GET": Endpoint(Endpoints._health, "Whether this process can take more work; for readiness.")},
    "/health/detailed": {"GET": Endpoint(Endpoints._detailed, "The same with the reason, the verdict and what failed.")},
    "/memory": {"GET": Endpoint(Endpoints._memory, "A snapshot, the trend and the statistics.")},
    "/memory/snapshot": {"GET": Endpoint(Endpoints._snapshot, "One reading now.")},
    "/memory/trend": {
        "GET": Endpoint(
            Endpoints._trend, "What one channel does.", {"channel": "such as rss or heap [rss]"}, {404: "no such channel"}
        )
    },
    "/memory/statistics": {"GET": Endpoint(Endpoints._statistics, "Current, average and peak of every channel.")},
    "/memory/report": {"GET": Endpoint(Endpoints._report, "Everything known.", {"format": "json, text or markdown [json]"})},
    "/caches": {
        "GET": Endpoint(Endpoints._caches, "Statistics of the caches.", _NAME),
        "DELETE": Endpoint(
            Endpoints._invalidate,
            "Remove what has a tag, a prefix, or keys like a pattern.",
            {"tag": "entries with this tag", "prefix": "keys that begin so", "pattern": "keys like a*b?c", **_NAME},
            {404: "no cache of that name"},
        ),
    },
    "/gc": {"POST": Endpoint(Endpoints._collect, "Collect garbage and give free memory back: a pause.")},
    "/metrics": {"GET": Endpoint(Endpoints._metrics, "For Prometheus.", statuses={404: "prometheus_client is not installed"})},
    "/openapi.json": {"GET": Endpoint(Endpoints._openapi, "This description.")},
}


def _parameters(query: str, accepted: Mapping[str, str]) -> dict[str, str]:
    if len(query) > QUERY_MOST:
        raise Refused(414, f"the query is longer than {QUERY_MOST} characters")
    try:
        pairs = parse_qsl(query, keep_blank_values=True, strict_parsing=True, errors="strict") if query else []
    except ValueError:
        raise Refused(400, "the query cannot be read") from None
    found: dict[str, str] = {}
    for name, value in pairs:
        if name not in accepted:
            raise Refused(400, f"{_shown(name)}: unknown parameter; this takes {', '.join(accepted) or 'none'}")
        if name in found:
            raise Refused(400, f"{name}: given twice")
        if not value:
            raise Refused(400, f"{name}: is empty")
        found[name] = value
    return found


def _shown(name: str) -> str:
    return re.sub(r"[^\w.-]", "?", name)[:40] or "?"


def _json(value: Any) -> bytes:
    return (json.dumps(value, default=str, allow_nan=False) + "\n").encode()


def openapi() -> dict[str, Any]:
    """The description of the endpoints, OpenAPI 3.1."""
    from memwatch import __version__

    error = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
    refusals = {400: "malformed", 401: "no token", 403: "another token", 405: "another method", 421: "another host name"}
    paths: dict[str, Any] = {}
    for path, methods in PATHS.items():
        paths[path] = {}
        for method, endpoint in methods.items():
            types = {"/memory/report": [*REPORT_TYPES.values()], "/metrics": ["text/plain"]}.get(path, ["application/json"])
            content: dict[str, Any] = {kind.partition(";")[0]: {} for kind in types}
            responses: dict[str, Any] = {"200": {"description": "the answer", "content": content}}
            if path.startswith(("/health", "/memory", "/metrics")):
                responses["503"] = {"description": "memory is nearly exhausted, or nothing is watched", "content": {}}
            if path == "/health":
                responses["400"] = {"description": "malformed", "content": error}
                responses["405"] = {"description": "another method", "content": error}
            else:
                for status, what in {**refusals, **endpoint.statuses}.items():
                    responses[str(status)] = {"description": what, "content": error}
            paths[path][method.lower()] = {
                "summary": endpoint.what,
                "parameters": [
                    {
                        "name": name,
                        "in": "query",
                        "description": what,
                        "required": False,
                        "schema": {"enum": [*REPORT_TYPES]} if name == "format" else {"type": "string", "minLength": 1},
                    }
                    for name, what in endpoint.parameters.items()
                ],
                "responses": responses,
            } | ({} if path in NO_TOKEN_NEEDED else {"security": [{"token": []}]})
    return {
        "openapi": "3.1.0",
        "info": {"title": "memwatch", "version": __version__},
        "paths": paths,
        "components": {
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
            "schemas": {"Error": {"type": "object", "required": ["error"], "properties": {"error": {"type": "string"}}}},
        },
    }
