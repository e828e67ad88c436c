from __future__ import annotations

import asyncio
import contextlib
import http.client
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from serving import UVICORN, UVICORN_LISTENS, Server, serving, until

from memwatch import routes
from memwatch.integrations.asgi import MemwatchMiddleware

LEDGER = """
import json
from memwatch import routes
def figures():
    book = routes.ledger()
    return [row._asdict() for row in book.figures(book.names())]
"""
STARLETTE = (
    LEDGER
    + """
import asyncio, contextlib
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.responses import JSONResponse, PlainTextResponse, StreamingResponse
from starlette.routing import Mount, Route, WebSocketRoute
from memwatch.integrations.asgi import MemwatchMiddleware
gate = asyncio.Event()
started = []
async def plain(request): return PlainTextResponse(str(request.path_params))
async def broken(request): raise RuntimeError("broken")
async def unavailable(request): return PlainTextResponse("later", 503)
async def stream(request):
    async def chunks():
        yield b"first"
        await gate.wait()
        yield b"last"
    return StreamingResponse(chunks())
async def half(request):
    async def chunks():
        yield b"first"
        raise RuntimeError("in the middle")
    return StreamingResponse(chunks())
async def release(request):
    gate.set()
    return PlainTextResponse("released")
async def ledger(request): return JSONResponse(figures())
async def echo(socket):
    await socket.accept()
    await socket.send_text(await socket.receive_text())
    await socket.close()
@contextlib.asynccontextmanager
async def lifespan(app):
    started.append(True)
    yield
async def was_started(request): return JSONResponse(started)
inner = Starlette(routes=[Route("/orders/{order}", plain)])
app = Starlette(lifespan=lifespan, routes=[
    Route("/users/{user:int}", plain), Route("/users/{user:int}", plain, methods=["POST"]), Route("/broken", broken),
    Route("/unavailable", unavailable), Route("/stream", stream), Route("/half", half), Route("/release", release),
    Route("/ledger", ledger), Route("/started", was_started), WebSocketRoute("/echo", echo),
    Mount("/shops/{shop}", app=inner),
])
app.add_middleware(MemwatchMiddleware)
"""
)
FASTAPI = (
    LEDGER
    + """
from fastapi import APIRouter, FastAPI
from memwatch.integrations.asgi import MemwatchMiddleware
app = FastAPI()
router = APIRouter(prefix="/items")
@router.get("/{item}")
async def item(item: int): return item
@router.get("/sync/{item}")
def item_in_a_thread(item: int): return item
@app.get("/ledger")
async def ledger(): return figures()
app.include_router(router)
app.add_middleware(MemwatchMiddleware)
"""
)


@pytest.fixture(scope="module")
def starlette(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("starlette")
    (folder / "app.py").write_text(STARLETTE)
    with serving(UVICORN, folder, UVICORN_LISTENS) as server:
        yield server


def test_starlettes_routes_are_counted_by_template_and_method(starlette: Server) -> None:
    for user in range(5):
        assert starlette.get(f"/users/{user}")[0] == 200
    starlette.get("/users/9", method="POST")
    figures = starlette.figures()
    assert figures["GET /users/{user:int}"]["requests"] == 5
    assert figures["POST /users/{user:int}"]["requests"] == 1
    assert figures["GET /users/{user:int}"]["errors"] == 0
    assert 0 < figures["GET /users/{user:int}"]["p50_s"] <= figures["GET /users/{user:int}"]["p99_s"] < 5


def test_a_mounted_application_is_named_with_the_names_of_the_mounts_parameters(starlette: Server) -> None:
    starlette.get("/shops/berlin/orders/17")
    starlette.get("/shops/paris/orders/18")
    assert starlette.figures()["GET /shops/{shop}/orders/{order}"]["requests"] == 2


def test_whatever_paths_nobody_has_a_route_for_are_one_row(starlette: Server) -> None:
    for path in ("/wp-admin.php", "/.env", "/users/abc", "/shops/berlin/nothing"):
        assert starlette.get(path)[0] == 404
    figures = starlette.figures()
    assert figures["(unmatched)"]["requests"] == 4
    assert not any("wp-admin" in route or "env" in route or "nothing" in route for route in figures)


def test_an_exception_and_a_status_of_500_are_errors(starlette: Server) -> None:
    assert starlette.get("/broken")[0] == 500
    assert starlette.get("/unavailable")[0] == 503
    figures = starlette.figures()
    assert (figures["GET /broken"]["requests"], figures["GET /broken"]["errors"]) == (1, 1)
    assert (figures["GET /unavailable"]["requests"], figures["GET /unavailable"]["errors"]) == (1, 1)


def test_a_stream_is_in_flight_until_its_last_byte(starlette: Server) -> None:
    connection = http.client.HTTPConnection(starlette.base.removeprefix("http://"), timeout=30)
    connection.request("GET", "/stream")
    answer = connection.getresponse()
    assert answer.read(5) == b"first"
    assert "GET /stream" not in starlette.figures()  # nothing is over
    starlette.get("/release")
    assert answer.read() == b"last"
    connection.close()
    until(lambda: starlette.figures().get("GET /stream", {}).get("requests") == 1, "the stream was counted")


def test_a_stream_that_breaks_off_is_an_error_and_breaks_off_for_the_client_as_well(starlette: Server) -> None:
    connection = http.client.HTTPConnection(starlette.base.removeprefix("http://"), timeout=30)
    connection.request("GET", "/half")
    with pytest.raises(http.client.IncompleteRead):
        connection.getresponse().read()
    connection.close()
    until(lambda: starlette.figures().get("GET /half", {}).get("errors") == 1, "the broken stream was counted")


def test_lifespan_reaches_the_application(starlette: Server) -> None:
    assert starlette.get("/started")[1] == b"[true]"


def test_fastapis_routes_are_counted_by_template(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(FASTAPI)
    with serving(UVICORN, tmp_path, UVICORN_LISTENS) as server:
        for item in range(4):
            server.get(f"/items/{item}")
            server.get(f"/items/sync/{item}")
        server.get("/items/none-such")  # does not validate: 422
        figures = server.figures()
    assert figures["GET /items/{item}"]["requests"] == 5
    assert figures["GET /items/sync/{item}"]["requests"] == 4
    assert figures["GET /items/{item}"]["errors"] == 0


# -- the middleware alone ------------------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def _empty_ledger() -> Iterator[None]:
    routes.ledger().clear()
    yield
    routes.ledger().clear()


def figures() -> dict[str, routes.Figures]:
    book = routes.ledger()
    return {row.route: row for row in book.figures(book.names())}


async def nothing(*_: Any) -> Any:
    return {"type": "http.request", "body": b"", "more_body": False}


def call(app: Any, **scope: Any) -> list[Any]:
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    asyncio.run(MemwatchMiddleware(app)({"type": "http", "method": "GET", "path": "/", "root_path": "", **scope}, nothing, send))
    return sent


async def answer(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"x"})


def test_an_application_without_routes_is_counted_by_its_path_with_ids_replaced() -> None:
    for number in range(3):
        assert [message["type"] for message in call(answer, path=f"/a/{number}/b")] == ["http.response.start", "http.response.body"]
    assert figures()["GET /a/{id}/b"].requests == 3


def test_what_an_application_without_routes_does_not_find_is_unmatched() -> None:
    async def not_found(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 404, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    for path in ("/.env", "/wp-admin.php"):
        call(not_found, path=path)
    assert figures()["(unmatched)"].requests == 2


def test_a_method_that_is_none_makes_no_route_of_its_own() -> None:
    for word in ("FOO", "BAR", "get"):
        call(answer, method=word, path="/a")
    assert figures()["OTHER /a"].requests == 3


@pytest.mark.usefixtures("flights")
def test_a_given_function_names_the_route_and_one_that_raises_is_replaced() -> None:
    def by_host(scope: Any) -> str:
        return str(scope["headers"]["host"])

    async def both() -> None:
        app = MemwatchMiddleware(answer, route=by_host)
        await app({"type": "http", "method": "GET", "path": "/x", "headers": {"host": "a.example"}}, nothing, nothing)
        await app({"type": "http", "method": "GET", "path": "/x", "headers": None}, nothing, nothing)

    asyncio.run(both())
    assert {name: row.requests for name, row in figures().items()} == {"a.example": 1, "GET /x": 1}


@pytest.mark.usefixtures("flights")
def test_a_cancelled_request_is_counted_is_no_error_and_stays_cancelled() -> None:
    async def main() -> None:
        reached = asyncio.Event()

        async def waits(scope: Any, receive: Any, send: Any) -> None:
            reached.set()
            await asyncio.Event().wait()

        task = asyncio.create_task(MemwatchMiddleware(waits)({"type": "http", "method": "GET", "path": "/w"}, nothing, nothing))  # type: ignore[arg-type]
        await reached.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    assert (figures()["GET /w"].requests, figures()["GET /w"].errors) == (1, 0)
    assert routes.ledger().in_flight == 0


def test_an_exception_is_raised_as_it_was() -> None:
    problem = RuntimeError("mine")

    async def raises(scope: Any, receive: Any, send: Any) -> None:
        raise problem

    with pytest.raises(RuntimeError) as raised:
        call(raises, path="/r")
    assert raised.value is problem
    assert figures()["GET /r"].errors == 1


@pytest.mark.parametrize("kind", ["websocket", "lifespan"])
@pytest.mark.usefixtures("flights")
def test_what_is_no_request_passes_untouched_and_uncounted(kind: str) -> None:
    seen: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.extend((scope, receive, send))

    scope = {"type": kind}
    asyncio.run(MemwatchMiddleware(app)(scope, nothing, nothing))  # type: ignore[arg-type]
    assert seen[0] is scope
    assert seen[1:] == [nothing, nothing]
    assert figures() == {}


@pytest.mark.usefixtures("flights")
def test_nothing_of_a_request_is_kept_when_it_is_over() -> None:
    import gc
    import weakref

    class Scope(dict[str, Any]):
        pass

    gone: list[weakref.ref[Any]] = []

    async def main() -> None:
        app = MemwatchMiddleware(answer)
        for _ in range(3):
            scope = Scope(type="http", method="GET", path="/k")
            gone.append(weakref.ref(scope))
            await app(scope, nothing, nothing)

    gc.disable()  # freed by counting references alone: there is no cycle
    with contextlib.ExitStack() as stack:
        stack.callback(gc.enable)
        asyncio.run(main())
        assert [reference() for reference in gone] == [None, None, None]


@pytest.mark.parametrize("status", [None, "500"])
@pytest.mark.usefixtures("flights")
def test_a_status_that_is_no_number_is_the_servers_to_refuse(status: Any) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": status})

    async def nothing(*_: Any) -> Any:
        return None

    scope = {"type": "http", "method": "GET", "path": "/", "headers": []}
    asyncio.run(MemwatchMiddleware(app)(scope, nothing, nothing))
