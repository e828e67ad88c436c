from __future__ import annotations

import http.client
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from wsgiref.util import setup_testing_defaults

import pytest
from serving import GUNICORN, GUNICORN_LISTENS, Server, serving

from memwatch import routes
from memwatch.integrations.wsgi import MemwatchMiddleware, init_app

FLASK = """
import os, socket
from flask import Blueprint, Flask, Response, jsonify, send_file
from memwatch import routes
from memwatch.integrations.wsgi import init_app
app = Flask(__name__)
shop = Blueprint("shop", __name__, url_prefix="/shop")
@app.route("/users/<int:user>", methods=["GET", "POST"])
def user(user): return str(user)
@shop.route("/<name>")
def of(name): return name
@app.route("/broken")
def broken(): raise RuntimeError("broken")
@app.route("/half")
def half():
    def chunks():
        yield b"first"
        raise RuntimeError("in the middle")
    return Response(chunks())
@app.route("/stream")
def stream(): return Response(iter([b"a", b"b"]))
sent = []
inner = socket.socket.sendfile
socket.socket.sendfile = lambda *arguments, **named: sent.append(1) or inner(*arguments, **named)
@app.route("/file")
def file(): return send_file(os.path.abspath(__file__))
@app.route("/sent")
def how_many_were_sent(): return str(len(sent))
@app.route("/ledger")
def ledger():
    book = routes.ledger()
    return jsonify([row._asdict() for row in book.figures(book.names())])
app.register_blueprint(shop)
init_app(init_app(app))
"""


@pytest.fixture(scope="module")
def flask(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("flask")
    (folder / "app.py").write_text(FLASK)
    with serving(GUNICORN, folder, GUNICORN_LISTENS) as server:
        yield server


def test_flasks_rules_are_counted_by_method(flask: Server) -> None:
    for user in range(3):
        assert flask.get(f"/users/{user}") == (200, str(user).encode())
    flask.get("/users/4", method="POST")
    flask.get("/shop/one")
    figures = flask.figures()
    assert figures["GET /users/<int:user>"]["requests"] == 3
    assert figures["POST /users/<int:user>"]["requests"] == 1
    assert figures["GET /shop/<name>"]["requests"] == 1


def test_paths_that_flask_has_no_rule_for_are_one_row(flask: Server) -> None:
    for path in ("/wp-admin.php", "/.env", "/users/abc"):
        assert flask.get(path)[0] == 404
    assert flask.figures()["(unmatched)"]["requests"] == 3


def test_a_view_that_raises_is_an_error(flask: Server) -> None:
    assert flask.get("/broken")[0] == 500
    assert (flask.figures()["GET /broken"]["requests"], flask.figures()["GET /broken"]["errors"]) == (1, 1)


def test_a_stream_is_counted_once_it_is_over_and_is_an_error_if_it_breaks_off(flask: Server) -> None:
    assert flask.get("/stream") == (200, b"ab")
    with pytest.raises(http.client.IncompleteRead):
        flask.get("/half")
    figures = flask.figures()
    assert (figures["GET /stream"]["requests"], figures["GET /stream"]["errors"]) == (1, 0)
    assert (figures["GET /half"]["requests"], figures["GET /half"]["errors"]) == (1, 1)


# -- the middleware alone ------------------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def _empty_ledger() -> Iterator[None]:
    routes.ledger().clear()
    yield
    routes.ledger().clear()


def figures() -> dict[str, routes.Figures]:
    book = routes.ledger()
    return {row.route: row for row in book.figures(book.names())}


def environ(path: str = "/", **more: Any) -> dict[str, Any]:
    made: dict[str, Any] = {"PATH_INFO": path, **more}
    setup_testing_defaults(made)
    return made


def start_response(*_: Any) -> Any:
    return None


def test_a_file_is_still_handed_to_the_kernel_by_the_server_and_counted_once(flask: Server) -> None:
    status, body = flask.get("/file")
    assert (status, body) == (200, FLASK.encode())
    assert flask.get("/sent") == (200, b"1")
    assert flask.figures()["GET /file"]["requests"] == 1
    assert flask.figures()["GET /ledger"]["in_flight"] == 1


class Closing:
    """An answer that knows whether it was closed."""

    def __init__(self, *chunks: bytes) -> None:
        self._chunks = iter(chunks)
        self.closed = 0

    def __iter__(self) -> Closing:
        return self

    def __next__(self) -> bytes:
        return next(self._chunks)

    def close(self) -> None:
        self.closed += 1


@pytest.mark.usefixtures("flights")
def test_a_request_is_under_way_until_its_answer_is_closed_and_the_answers_own_close_is_called_once() -> None:
    inner = Closing(b"a", b"b")

    def app(environ: Any, start: Any) -> Any:
        start("200 OK", [])
        return inner

    answer: Any = MemwatchMiddleware(app)(environ("/a"), start_response)
    assert list(answer) == [b"a", b"b"]
    assert routes.ledger().in_flight == 1
    assert figures() == {}
    answer.close()
    answer.close()
    assert inner.closed == 1
    assert routes.ledger().in_flight == 0
    assert figures()["GET /a"].requests == 1


@pytest.mark.usefixtures("flights")
def test_an_answer_that_nobody_closes_is_over_when_it_is_thrown_away() -> None:
    answer: Any = MemwatchMiddleware(lambda environ, start: Closing(b"a"))(environ("/a"), start_response)
    next(answer)
    del answer
    assert routes.ledger().in_flight == 0
    assert figures()["GET /a"].requests == 1


@pytest.mark.usefixtures("flights")
def test_a_list_is_passed_on_as_it_is() -> None:
    body = [b"x"]
    assert MemwatchMiddleware(lambda environ, start: body)(environ("/a"), start_response) is body
    assert figures()["GET /a"].requests == 1


@pytest.mark.usefixtures("flights")
def test_what_the_application_raises_is_raised_and_counted() -> None:
    problem = RuntimeError("mine")

    def app(environ: Any, start: Any) -> Any:
        raise problem

    with pytest.raises(RuntimeError) as raised:
        MemwatchMiddleware(app)(environ("/a"), start_response)
    assert raised.value is problem
    assert figures()["GET /a"].errors == 1


@pytest.mark.usefixtures("flights")
def test_start_response_gives_the_servers_write_and_takes_exc_info() -> None:
    def write(chunk: bytes) -> None: ...

    told: list[Any] = []

    def start(*arguments: Any) -> Any:
        told.append(arguments)
        return write

    given: list[Any] = []

    def app(environ: Any, start: Any) -> Any:
        given.append(start("500 No", [("A", "b")], (None, None, None)))
        return [b""]

    MemwatchMiddleware(app)(environ(), start)
    assert told == [("500 No", [("A", "b")], (None, None, None))]
    assert given == [write]
    assert figures()["GET /"].errors == 1


def test_what_is_no_flask_application_is_refused_with_what_to_do() -> None:
    with pytest.raises(TypeError, match=r"function has no wsgi_app; wrap it: MemwatchMiddleware\(application\)"):
        init_app(start_response)


def test_whatever_is_asked_for_memory_is_bounded(tmp_path: Path) -> None:
    app = MemwatchMiddleware(lambda environ, start: [b""])
    for number in range(1000):
        app(environ("/" + "".join(chr(97 + int(digit)) for digit in str(number))), start_response)
    names = figures()
    assert len(names) <= 200
    assert sum(row.requests for row in names.values()) == 1000
    assert names["(other)"].requests > 700


@pytest.mark.parametrize("line", [200, None, b"200 OK"])
@pytest.mark.usefixtures("flights")
def test_a_status_line_that_is_no_text_is_the_servers_to_refuse(line: Any) -> None:
    given: list[Any] = []

    def app(environ: Any, start_response: Any) -> list[bytes]:
        start_response(line, [])
        return [b""]

    MemwatchMiddleware(app)({"REQUEST_METHOD": "GET", "PATH_INFO": "/"}, lambda *arguments: given.append(arguments))
    assert given == [(line, [])]
