"""What every request passes and every response carries.

Law: nothing is read of a record before a request has passed here, and no response leaves without these headers.
"""

from __future__ import annotations

from collections.abc import Callable

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from memwatch.access import is_our_host
from memwatch.endpoints import QUERY_MOST
from memwatch.web import pages
from memwatch.web.door import Busy, Door

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; form-action 'self'; "
    "frame-ancestors 'none'; base-uri 'none'"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
}
CHANGES = ("/login", "/logout")
"""All that may be posted to: they change the reader's session, and nothing here."""


class Guard:
    """Around the application: host, method, token, headers.

    Args:
        close: lets every page that is live end; whoever ends the server calls it, in the event loop.
    """

    def __init__(self, app: ASGIApp, *, door: Door, hosts: frozenset[str], close: Callable[[], None]) -> None:
        self.close = close
        self._app = app
        self._door = door
        self._hosts = hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers[name] = value
                headers.setdefault("Cache-Control", "no-store")
            await send(message)

        refused = await self._refused(scope)
        if refused is None:
            await self._app(scope, receive, sending)
        else:
            await refused(scope, receive, sending)

    async def _refused(self, scope: Scope) -> Response | None:
        headers, path, method = Headers(scope=scope), scope["path"], scope["method"]
        asks = Request(scope)
        hosts = headers.getlist("host")
        if len(hosts) != 1 or not is_our_host(hosts[0], self._hosts):
            return refusal(asks, 421, "Not this host", "This name is not answered; allow it with memwatch serve --allow-host NAME.")
        allowed = ("POST",) if path == "/logout" else ("GET", "HEAD", "POST") if path == "/login" else ("GET", "HEAD")
        if method not in allowed:
            detail = f"This answers {' and '.join(allowed)}; nothing here changes anything."
            return refusal(asks, 405, "Not this method", detail, Allow=", ".join(allowed))
        if method == "POST" and headers.get("origin", "").partition("://")[2] not in ("", hosts[0]):
            return refusal(asks, 403, "Not from there", "A form of another site was sent here.")
        if len(scope["query_string"]) > QUERY_MOST:
            return refusal(asks, 414, "Too long", f"The query is longer than {QUERY_MOST} characters.")
        if path in CHANGES or path.startswith("/assets/"):
            return None
        try:
            admitted = await self._door.admits(headers)
        except Busy:
            return busy(asks)
        if admitted:
            return None
        if wants_page(asks) and admitted is None:
            query = scope["query_string"].decode("latin-1")
            target = path + (f"?{query}" if query else "")
            return HTMLResponse(pages.login(target), 401, {"WWW-Authenticate": "Bearer"})
        if admitted is None:
            return JSONResponse({"error": "a token is needed: Authorization: Bearer …"}, 401, {"WWW-Authenticate": "Bearer"})
        return JSONResponse({"error": "not this token"}, 403)


def wants_page(asks: Request) -> bool:
    """Whether a person asks, and not a program."""
    return "text/html" in asks.headers.get("accept", "")


def busy(asks: Request) -> Response:
    """The answer while too many wrong tokens wait."""
    return refusal(asks, 429, "Too many at once", "Wrong tokens are being tried; try again in a moment.", **{"Retry-After": "5"})


def refusal(asks: Request, status: int, title: str, detail: str, **headers: str) -> Response:
    """What is wrong, for whoever asks."""
    if wants_page(asks):
        return HTMLResponse(pages.problem(status, title, detail, links=False), status, headers)
    return JSONResponse({"error": detail}, status, headers)
