"""The dashboard as an ASGI application."""

from __future__ import annotations

import contextlib
import re
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import TypeVar
from urllib.parse import parse_qs

import anyio.to_thread
from sse_starlette import EventSourceResponse, ServerSentEvent
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.routing import Route

from memwatch import report as reports
from memwatch.access import host_names
from memwatch.model import Report
from memwatch.moments import MOMENTS
from memwatch.record import RecordError
from memwatch.report import html as report_page
from memwatch.report.compare import compare
from memwatch.web import assets, comparison, pages
from memwatch.web.door import COOKIE, SESSION_S, Busy, Door
from memwatch.web.guard import Guard, busy, refusal
from memwatch.web.live import Content, Live, Topic
from memwatch.web.reading import NotFound, Reading
from memwatch.web.rows import COLUMNS, Row

SEND_S = 10.0
"""A page that takes nothing for this long is dropped; it asks again by itself."""
PING_S = 15.0
GRACE_S = 1.0
"""When the server ends, a stream has this long to end by itself (`close`): cut off, uvicorn would call it an error."""
FORM_MOST = 4096
"""Bytes of a form: a token has room in it."""
REPORTS: Mapping[str, tuple[str, Callable[[Report], str]]] = {
    "html": ("text/html; charset=utf-8", report_page.render_html),
    "md": ("text/markdown; charset=utf-8", partial(reports.render, format="markdown")),
    "txt": ("text/plain; charset=utf-8", partial(reports.render, format="text")),
    "json": ("application/json", partial(reports.render, format="json")),
}
_Found = TypeVar("_Found")


def dashboard(directory: Path, *, token: str | None = None, hosts: Iterable[str] = ()) -> Guard:
    """The dashboard over the records of a directory.

    Args:
        token: what a reader must know, at least 16 characters; None lets in whoever can connect.
        hosts: names that the Host header may have besides `localhost` and addresses in figures.

    Raises:
        ValueError: the token is short enough to be guessed.
    """
    door = Door(token)
    site = _Site(Reading(directory), door)
    routes = [
        Route("/", site.fleet),
        Route("/events", site.fleet_events),
        Route("/process/{name}", site.process),
        Route("/process/{name}/events", site.process_events),
        Route("/process/{name}/report.{kind}", site.report),
        Route("/compare", site.compare),
        Route("/login", site.login_page, methods=["GET"]),
        Route("/login", site.log_in, methods=["POST"]),
        Route("/logout", site.log_out, methods=["POST"]),
        Route("/assets/{digest}/{name}", site.asset),
    ]
    app = Starlette(routes=routes, exception_handlers={HTTPException: site.wrong, Exception: site.failed})
    return Guard(app, door=door, hosts=host_names(hosts), close=site.close)  # around everything, what tells of a failure too


class _Site:
    """Answers requests that have passed the guard."""

    def __init__(self, reading: Reading, door: Door) -> None:
        self._reading = reading
        self._door = door
        self._live = Live()
        self._rows: list[Row] = []

    def close(self) -> None:
        """Let every page that is live end."""
        self._live.close()

    # The fleet.

    def _read_fleet(self) -> Content:
        seen, errors = self._reading.look()
        content, self._rows = pages.fleet_content(seen, errors, is_complete=self._reading.is_complete)
        return content

    async def fleet(self, asks: Request) -> Response:
        given = asks.query_params
        sort = given.get("sort", "worst")
        if sort not in COLUMNS:
            raise HTTPException(400, f"sort: {sort[:80]!r} is not one of {', '.join(COLUMNS)}")
        order = given.get("order") or COLUMNS[sort][1]
        if order not in ("asc", "desc"):
            raise HTTPException(400, f"order: {order[:80]!r} is not one of asc, desc")
        topic = self._live.topic("fleet", self._read_fleet)
        await self._live.refresh(topic)
        draw = partial(
            pages.fleet,
            topic.parts,
            self._rows,
            self._reading.directory,
            version=topic.version,
            sort=sort,
            order=order,
            wanted=given.get("q", "")[:200],
            leave=not self._door.is_open,
        )
        return _page(await anyio.to_thread.run_sync(draw))

    async def fleet_events(self, asks: Request) -> Response:
        return await self._events(asks, self._live.topic("fleet", self._read_fleet))

    # One process.

    def _topic_of(self, asks: Request) -> Topic:
        name = asks.path_params["name"]
        return self._live.topic(f"process {name}", lambda: pages.process_content(name, self._reading.report(name)))

    async def process(self, asks: Request) -> Response:
        topic = self._topic_of(asks)
        with _told():
            await self._live.refresh(topic)
        name = asks.path_params["name"]
        return _page(pages.process(name, topic.parts, version=topic.version, leave=not self._door.is_open))

    async def process_events(self, asks: Request) -> Response:
        return await self._events(asks, self._topic_of(asks))

    async def report(self, asks: Request) -> Response:
        name, kind = asks.path_params["name"], asks.path_params["kind"]
        if kind not in REPORTS:
            raise HTTPException(404, f"report.{kind[:40]}: a report is one of {', '.join(f'report.{known}' for known in REPORTS)}")
        media_type, render = REPORTS[kind]
        text = await _in_thread(lambda: render(self._reading.report(name)))
        # As a file: the policy of this site would forbid the page its own script.
        called = re.sub(r"[^A-Za-z0-9_.+@-]", "-", name)[:100]
        disposition = f'attachment; filename="{called}.{kind}"' if kind in ("html", "md") else "inline"
        return Response(text, media_type=media_type, headers={"Content-Disposition": disposition})

    # Two moments.

    async def compare(self, asks: Request) -> Response:
        given = asks.query_params
        asked = comparison.Asked(*(given.get(name, "").strip()[:1000] for name in ("a", "a_at", "b", "b_at")))
        seen, _ = await _in_thread(self._reading.look)
        leave = not self._door.is_open
        if not asked.a and not asked.b:
            return _page(comparison.compare_page(asked, seen, leave=leave))
        if not asked.a or not asked.b:
            wrong = f"two are compared: {'B' if asked.a else 'A'} is empty"
            return _page(comparison.compare_page(asked, seen, wrong=wrong, leave=leave), 400)
        status = 404
        try:
            one, other = await anyio.to_thread.run_sync(
                lambda: (self._reading.moment(asked.a, asked.a_at), self._reading.moment(asked.b, asked.b_at))
            )
        except ValueError as error:
            status, wrong = 400, f"{error}: it is {MOMENTS}"
        except (NotFound, RecordError) as error:
            wrong = str(error)
        else:
            found = compare(one[2], other[2])
            shown = comparison.Asked(one[0], one[1], other[0], other[1])
            return _page(comparison.compare_page(shown, seen, found=found, names=(one[0], other[0]), leave=leave))
        return _page(comparison.compare_page(asked, seen, wrong=wrong, leave=leave), status)

    # Live.

    async def _events(self, asks: Request, topic: Topic) -> Response:
        with _told():
            await self._live.refresh(topic)
        if self._live.is_full:
            raise HTTPException(503, "as many pages as may are live already; this one stands still", {"Retry-After": "30"})
        version = asks.headers.get("last-event-id") or asks.query_params.get("since", "")

        async def events() -> AsyncIterator[ServerSentEvent]:
            async with contextlib.aclosing(self._live.follow(topic, version)) as news:
                async for number, told in news:
                    yield ServerSentEvent(told, id=number, event="parts")

        return EventSourceResponse(events(), ping=PING_S, send_timeout=SEND_S, shutdown_grace_period=GRACE_S)

    # Coming and going.

    async def login_page(self, asks: Request) -> Response:
        if self._door.is_open:
            return RedirectResponse("/", 303)
        return _page(pages.login("/"))

    async def log_in(self, asks: Request) -> Response:
        body = b""
        try:
            async for chunk in asks.stream():
                body += chunk
                if len(body) > FORM_MOST:
                    raise HTTPException(413, f"the form is longer than {FORM_MOST} bytes")
        except ClientDisconnect:  # no failure of ours, and nobody there to be answered
            raise HTTPException(400, "the form ended before its end") from None
        form = parse_qs(body.decode("utf-8", "replace"), max_num_fields=8)
        target = form.get("next", ["/"])[0]
        if not re.match(r"/(?![/\\])[^\x00-\x1f\\]*\Z", target):
            target = "/"
        if self._door.is_open:
            return RedirectResponse("/", 303)
        try:
            is_right = await self._door.is_right(form.get("token", [""])[0])
        except Busy:
            return busy(asks)
        if not is_right:
            return _page(pages.login(target, "That is not the token."), 403)
        answer = RedirectResponse(target, 303)
        secure = asks.url.scheme == "https"
        answer.set_cookie(COOKIE, self._door.session(), int(SESSION_S), httponly=True, samesite="strict", secure=secure)
        return answer

    async def log_out(self, asks: Request) -> Response:
        answer = RedirectResponse("/", 303)
        answer.delete_cookie(COOKIE, httponly=True, samesite="strict")
        return answer

    # What is there beside pages.

    async def asset(self, asks: Request) -> Response:
        name, digest = asks.path_params["name"], asks.path_params["digest"]
        if name not in assets.TYPES or digest != assets.digest(name):
            raise HTTPException(404, "there is nothing here; reload the page")
        tag = f'"{digest}"'
        headers = {"Cache-Control": "public, max-age=31536000, immutable", "ETag": tag}
        if asks.headers.get("if-none-match") == tag:
            return Response(status_code=304, headers=headers)
        return Response(assets.content(name), media_type=assets.TYPES[name], headers=headers)

    async def wrong(self, asks: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        title = {404: "Not there", 400: "Not understood", 503: "Not now"}.get(error.status_code, "Not possible")
        detail = "There is nothing at this address." if error.detail == "Not Found" else error.detail
        return refusal(asks, error.status_code, title, detail, **(error.headers or {}))

    async def failed(self, asks: Request, error: Exception) -> Response:
        return refusal(
            asks, 500, "memwatch failed", f"{type(error).__name__}; what failed is told where the dashboard was started."
        )


async def _in_thread(read: Callable[[], _Found]) -> _Found:
    """Read in a thread.

    Raises:
        HTTPException: what was asked for is not there.
    """
    with _told():
        return await anyio.to_thread.run_sync(read)


@contextlib.contextmanager
def _told() -> Iterator[None]:
    try:
        yield
    except NotFound as error:
        raise HTTPException(404, str(error)) from None
    except RecordError as error:
        raise HTTPException(404, reports.shown(str(error))) from None


def _page(text: str, status: int = 200) -> Response:
    return HTMLResponse(text.encode("utf-8", "replace"), status)
