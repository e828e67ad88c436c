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
        status, route = "0", ""

        def watched_start(line: str, *arguments: Any) -> Any:
            nonlocal status, route
            # Now, not at the end: Flask takes its request out of the environ when the view has answered.
            if isinstance(line, str):  # else the server's to refuse
                status, route = line, self._named(environ, line[:3])
            return start_response(line, *arguments)

        def over(failed: bool) -> None:
            self._ledger.end(number, route or self._named(environ, ""), failed or status[:1] == "5")

        number = self._ledger.begin(self._named, environ, "")
        try:
            answer = self.application(environ, watched_start)
        except BaseException:
            over(True)
            raise
        if type(answer) in (list, tuple):
            over(False)
            return answer
        return _Answer(answer, over)

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


class _Answer:
    """An answer under way; it is over when it is closed, and in any case when it is thrown away."""

    __slots__ = ("_answer", "_chunks", "_failed", "_over", "_wants_close")

    def __init__(self, answer: Iterable[bytes], over: Callable[[bool], None]) -> None:
        self._answer = answer
        self._chunks: Iterator[bytes] | None = None
        self._over: Callable[[bool], None] | None = over
        self._failed = False
        self._wants_close = True

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        chunks = self._chunks
        if chunks is None:
            chunks = self._chunks = iter(self._answer)
        try:
            return next(chunks)
        except StopIteration:
            raise
        except BaseException:
            self._failed = True
            raise

    def close(self) -> None:
        """The server has sent it, or given up."""
        try:
            close = getattr(self._answer, "close", None) if self._wants_close else None
            self._wants_close = False
            if close is not None:
                close()
        except BaseException:
            self._failed = True
            raise
        finally:
            over, self._over = self._over, None
            if over is not None:
                over(self._failed)

    def __del__(self) -> None:
        over, self._over = self._over, None
        if over is not None:
            over(self._failed)


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
