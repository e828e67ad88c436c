"""WSGI: counts requests per route for Flask, Bottle, Pyramid, Django and whatever else speaks it.

    app = init_app(app)                               # Flask: wraps app.wsgi_app
    application = MemwatchMiddleware(application)     # anything

Law: an answer is passed through as it is, an iterable with its `close`; what the application raises is raised.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from memwatch.routes import UNMATCHED, ledger
from memwatch.routes.names import method, normalised

Environ = dict[str, Any]
StartResponse = Callable[..., Any]
Application = Callable[[Environ, StartResponse], Iterable[bytes]]


class MemwatchMiddleware:
    """Counts every request under its route.

    Args:
        application: the application below.
        route: says the route of an environ once the application has answered; None from it, or an exception, falls back to the
            default: the rule that Flask (or Werkzeug's `url_rule`) matched, else the path with ids replaced.

    A request is over when the server closes the answer, after its last byte.  An answer that is a list or a tuple is over when it
    is returned: it is passed on unwrapped, so that a server can still tell its length.

    Cost: 6 µs a request (bench/middleware.py --cost).
    """

    def __init__(self, application: Application, *, route: Callable[[Environ], str | None] | None = None) -> None:
        self.application = application
        self._route = route
        self._ledger = ledger()

    def __call__(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        """The WSGI interface."""
        call = _Call(self, environ, start_response)
        try:
            answer = self.application(environ, call.start)
        except BaseException:
            call.end(True)
            raise
        if type(answer) in (list, tuple):
            call.end(False)
            return answer
        wrapper = environ.get("wsgi.file_wrapper")
        if isinstance(wrapper, type) and isinstance(answer, wrapper):
            return call.follow(answer)
        call.answer = answer
        return call

    def _named(self, environ: Environ, code: str) -> str:
        try:
            if self._route is None:
                return _route_of(environ, code)
            try:
                said = self._route(environ)
            except Exception:
                said = None
            return str(said) if said else _route_of(environ, code)
        except Exception:
            return UNMATCHED  # an environ that no specification knows


class _Call:
    """A request under way, and its answer; it is over when that is closed, and in any case when it is thrown away."""

    __slots__ = ("_chunks", "_environ", "_middleware", "_number", "_over", "_route", "_start", "_status", "_verb", "answer")

    def __init__(self, middleware: MemwatchMiddleware, environ: Environ, start: StartResponse) -> None:
        self._middleware, self._environ, self._start = middleware, environ, start
        self._status, self._over = "", False
        self._route: str | None = None
        self._verb: str | None = None
        self._chunks: Iterator[bytes] | None = None
        self.answer: Iterable[bytes] | None = None
        self._number = middleware._ledger.begin(middleware._named, environ, "")

    def start(self, line: str, *arguments: Any) -> Any:
        """The `start_response` that the application is given."""
        # The route now, not at the end: Flask takes its request out of the environ when the view has answered.
        if isinstance(line, str):  # else the server's to refuse
            self._status = line
            self._route = None
            if self._middleware._route is None:
                try:
                    # What most requests are: the name is put together later, when the ledger writes.
                    self._route = self._environ["werkzeug.request"].url_rule.rule
                    self._verb = self._environ["REQUEST_METHOD"]
                except Exception:
                    self._route = None
            if type(self._route) is not str:
                self._route, self._verb = self._middleware._named(self._environ, line[:3]), None
        return self._start(line, *arguments)

    def end(self, failed: bool) -> None:
        """It is over; a second time does nothing."""
        if not self._over:
            self._over = True
            route = self._middleware._named(self._environ, "") if self._route is None else self._route
            self._middleware._ledger.end(self._number, route, failed or self._status[:1] == "5", self._verb)

    def follow(self, file: Any) -> Any:
        """A file that the server may hand to the kernel, if it is given its own wrapper and no other."""
        close = getattr(file, "close", None)

        def closed() -> None:
            try:
                if close is not None:
                    close()
            finally:
                self.end(False)

        try:
            file.close = closed
        except (AttributeError, TypeError):  # a server's in C: nobody says when it is sent
            self.end(False)
        return file

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        chunks = self._chunks
        if chunks is None:
            chunks = self._chunks = iter(() if self.answer is None else self.answer)
        try:
            return next(chunks)
        except StopIteration:
            raise
        except BaseException:
            self._status = "5"
            raise

    def close(self) -> None:
        """The server has sent it, or given up."""
        answer, self.answer = self.answer, None
        failed = False
        try:
            close = getattr(answer, "close", None)
            if close is not None:
                close()
        except BaseException:
            failed = True
            raise
        finally:
            self.end(failed)

    def __del__(self) -> None:
        self.end(False)


def _route_of(environ: Environ, code: str) -> str:
    request = environ.get("werkzeug.request")
    if request is not None:
        rule = getattr(request, "url_rule", None)
        if rule is not None:
            return f"{method(environ.get('REQUEST_METHOD'))} {rule.rule}"
        if hasattr(request, "routing_exception"):  # Flask has routed, and found nothing
            return UNMATCHED
    if code == "404":
        return UNMATCHED
    path = environ.get("SCRIPT_NAME", "") + environ.get("PATH_INFO", "")
    return f"{method(environ.get('REQUEST_METHOD'))} {normalised(path)}"


def init_app(app: Any, *, route: Callable[[Environ], str | None] | None = None) -> Any:
    """Count the requests of a Flask application; returns it.  A second call does nothing.

    Raises:
        TypeError: it has no `wsgi_app`.
    """
    inner = getattr(app, "wsgi_app", None)
    if inner is None:
        raise TypeError(f"{type(app).__name__} has no wsgi_app; wrap it: MemwatchMiddleware(application)")
    if not isinstance(inner, MemwatchMiddleware):
        app.wsgi_app = MemwatchMiddleware(inner, route=route)
    return app
