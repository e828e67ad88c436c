from __future__ import annotations

import gc
import math
import os
import random
import signal
import threading
import tracemalloc
import weakref
from collections.abc import Generator
from typing import Any

import pytest

from memwatch import routes
from memwatch.integrations.asgi import MemwatchMiddleware
from memwatch.routes import OTHER, RELATIVE_ERROR, UNMATCHED, Ledger
from memwatch.routes import ledger as process_ledger
from memwatch.routes.ledger import MOST_ROUTES, RECENT_S, SAY_AGAIN_S
from memwatch.routes.names import method, normalised
from memwatch.testing import FakeClock

MIB = 2**20

pytestmark = pytest.mark.usefixtures("flights")


class Book:
    """A ledger on a clock and a memory that move when told to."""

    def __init__(self, threshold: float = 10 * MIB) -> None:
        self.clock = FakeClock()
        self.ledger = Ledger(self.clock.monotonic, flights=type(process_ledger().flights))
        self.rss = 100.0 * MIB
        self.ledger.read_rss = lambda: self.rss
        self.ledger.threshold_bytes = threshold
        self.readings = 0

    def read_slowly(self) -> float:
        self.readings += 1
        self.clock.advance(5e-6)
        return self.rss

    def request(self, route: str, took_s: float = 0.01, *, failed: bool = False, grows: float = 0.0) -> None:
        number = self.ledger.begin()
        self.clock.advance(took_s)
        self.rss += grows
        self.ledger.end(number, route, failed=failed)

    def only(self, route: str):  # type: ignore[no-untyped-def]
        (found,) = self.ledger.figures([route])
        return found


def test_requests_errors_and_those_in_flight_are_counted_per_route() -> None:
    book = Book()
    for _ in range(3):
        book.request("GET /a")
    book.request("GET /a", failed=True)
    book.request("GET /b")
    waiting = book.ledger.begin("GET /a")
    also = book.ledger.begin(lambda: "GET /b")
    assert (book.only("GET /a").requests, book.only("GET /a").errors, book.only("GET /a").in_flight) == (4, 1, 1)
    assert (book.only("GET /b").requests, book.only("GET /b").errors, book.only("GET /b").in_flight) == (1, 0, 1)
    book.ledger.end(waiting, "GET /a")
    book.ledger.end(also, "GET /b")
    assert book.ledger.in_flight == 0


@pytest.mark.parametrize("seed", range(5))
def test_percentiles_are_within_their_stated_error_of_the_true_ones(seed: int) -> None:
    rng = random.Random(seed)
    book = Book()
    times = [math.exp(rng.gauss(-4, 1.5)) for _ in range(3000)]
    for took_s in times:
        book.request("GET /a", took_s)
    times.sort()
    found = book.only("GET /a")
    for value, part in ((found.p50_s, 0.5), (found.p95_s, 0.95), (found.p99_s, 0.99)):
        assert value == pytest.approx(times[math.ceil(part * len(times)) - 1], rel=RELATIVE_ERROR + 1e-9)


def test_percentiles_forget_what_is_older_than_ten_minutes() -> None:
    book = Book()
    book.request("GET /a", 5.0)
    for _ in range(2):
        book.clock.advance(RECENT_S)
        book.only("GET /a")
    assert book.only("GET /a").p50_s is None
    book.request("GET /a", 0.001)
    assert book.only("GET /a").p99_s == pytest.approx(0.001, rel=0.05)
    assert book.only("GET /a").requests == 2


def test_whatever_times_come_they_have_a_bucket() -> None:
    book = Book()
    for took_s in (0.0, 1e-9, 1e-5, 1e9):
        book.request("GET /a", took_s)
    assert book.only("GET /a").requests == 4
    book.ledger.add("job:a", -1.0)  # the wall clock was set
    assert book.only("job:a").p50_s == pytest.approx(1e-5, rel=0.05)


def test_memory_is_bounded_whatever_routes_come_and_no_request_is_lost() -> None:
    book = Book()
    for number in range(MOST_ROUTES):
        book.request(f"GET /{number}")
    assert len(book.ledger.names()) == MOST_ROUTES - 1  # all in their rows
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    for number in range(5000):
        book.request(f"GET /{number}/{'x' * 500}")
    grown = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    names = book.ledger.names()
    assert len(names) <= MOST_ROUTES
    assert sum(book.ledger.counts()) == MOST_ROUTES + 5000
    assert book.only(OTHER).requests == 5002
    assert grown < 100_000  # the last 128 names at most, not yet written into their rows, come to some 70 KB


def test_there_is_always_a_row_left_for_paths_without_a_route() -> None:
    book = Book()
    for number in range(1000):
        book.request(f"GET /{number}")
    book.request(UNMATCHED)
    assert book.only(UNMATCHED).requests == 1
    assert len(book.ledger.names()) == MOST_ROUTES


def test_threads_that_count_at_once_lose_nothing() -> None:
    ledger = process_ledger()

    def work() -> None:
        for number in range(5000):
            ledger.end(ledger.begin(), f"GET /{number % 3}")

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(ledger.counts()) == 20_000
    assert ledger.in_flight == 0


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_a_forked_child_begins_with_an_empty_ledger_even_if_its_lock_was_held() -> None:
    ledger = process_ledger()
    ledger.end(ledger.begin(), "GET /parent")
    held, release = threading.Event(), threading.Event()

    def hold() -> None:
        with ledger._lock:
            held.set()
            release.wait()

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait()
    child = os.fork()
    if child == 0:
        ledger.end(ledger.begin(), "GET /child")
        os._exit(0 if ledger.names() == ["GET /child"] else 1)
    release.set()
    thread.join()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert "GET /parent" in ledger.names()
    ledger.clear()


# -- single requests -----------------------------------------------------------------------------------------------------------


def test_a_request_that_grew_memory_while_it_ran_alone_is_told() -> None:
    book = Book()
    book.request("GET /a", grows=1 * MIB)
    book.request("GET /report", 0.5, grows=12 * MIB)
    (grown,) = book.ledger.grown()
    assert (grown.route, grown.bytes, grown.took_s) == ("GET /report", 12 * MIB, pytest.approx(0.5))
    assert book.ledger.grown() == []


def test_nothing_is_claimed_of_requests_that_overlap() -> None:
    book = Book()
    first = book.ledger.begin()
    second = book.ledger.begin()
    book.rss += 50 * MIB
    book.clock.advance(1.0)
    book.ledger.end(second, "GET /b")
    book.ledger.end(first, "GET /a")
    third = book.ledger.begin()
    fourth = book.ledger.begin()
    book.rss += 50 * MIB
    book.clock.advance(1.0)
    book.ledger.end(third, "GET /c")
    book.ledger.end(fourth, "GET /d")
    # One that is over before the other grows does overlap.
    fifth = book.ledger.begin()
    book.ledger.end(book.ledger.begin(), "GET /e")
    book.rss += 50 * MIB
    book.clock.advance(1.0)
    book.ledger.end(fifth, "GET /f")
    assert book.ledger.grown() == []


def test_a_route_that_grows_with_each_request_is_told_of_once_in_ten_minutes() -> None:
    book = Book()
    for _ in range(20):
        book.request("GET /a", 1.0, grows=20 * MIB)
    assert len(book.ledger.grown()) == 1
    book.clock.advance(SAY_AGAIN_S)
    book.request("GET /a", 1.0, grows=20 * MIB)
    assert len(book.ledger.grown()) == 1


def test_fast_requests_are_measured_for_a_small_part_of_their_time_only() -> None:
    book = Book()
    book.ledger.read_rss = book.read_slowly
    for _ in range(2000):
        book.request("GET /a", 100e-6)
    assert 50 <= book.readings <= 2000 * 100e-6 * 0.002 / 5e-6 + 5


def test_while_requests_always_overlap_memory_is_hardly_read_and_soon_again_when_they_no_longer_do() -> None:
    book = Book()
    book.ledger.read_rss = book.read_slowly
    for _ in range(20_000):
        first, second = book.ledger.begin(), book.ledger.begin()
        book.clock.advance(100e-6)
        book.ledger.end(first, "GET /a")
        book.ledger.end(second, "GET /a")
    assert book.readings <= 7 + 20_000 * 100e-6 * 0.002 / 5e-6 / 32  # seven by which patience grows; alone they would be 800
    for _ in range(20):
        book.request("GET /report", 0.02, grows=12 * MIB)
    assert [grown.route for grown in book.ledger.grown()] == ["GET /report"]


def test_without_a_watcher_memory_is_not_read() -> None:
    book = Book()
    book.ledger.read_rss = None
    book.request("GET /a", 1.0, grows=50 * MIB)
    book.ledger.read_rss = lambda: 1 / 0
    book.request("GET /a", 1.0, grows=50 * MIB)
    assert book.ledger.grown() == []
    assert book.only("GET /a").requests == 2


# -- names ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/", "/"),
        ("", "/"),
        ("/users", "/users"),
        ("/users/42", "/users/{id}"),
        ("/users/42/cart", "/users/{id}/cart"),
        ("/v1/things", "/v1/things"),
        ("/o/3f2504e0-4f89-11d3-9a0c-0305e82c3301", "/o/{id}"),
        ("/commit/9fceb02d0ae598e95dc970b74767f19372d61af8", "/commit/{id}"),
        ("/feedback", "/feedback"),
        ("/t/eyJhbGciOiJIUzI1NiIsInR5cCI6", "/t/{id}"),
        ("/u/a@example.org", "/u/{id}"),
        ("/2026-11-26/x?a=1", "/{id}/x"),
        ("/a/b/c/d/e/f/g/h/i/j", "/a/b/c/d/e/f/g/h/…"),
    ],
)
def test_a_path_is_named_with_what_looks_like_an_id_replaced(path: str, name: str) -> None:
    assert normalised(path) == name


def test_a_path_of_any_length_is_named_at_once() -> None:
    assert len(normalised("/" + "1a" * 10**6)) < 20
    assert len(normalised("/a" * 10**6)) < 40


def test_only_methods_of_http_are_methods() -> None:
    assert [method(word) for word in ("GET", "get", "PROPFIND", None)] == ["GET", "OTHER", "OTHER", "OTHER"]


# -- what is held --------------------------------------------------------------------------------------------------------------


class Thing(dict[str, object]):
    """What a program gave, and can be referred to weakly."""


def test_what_a_request_was_given_is_let_go_when_it_is_over_even_if_it_holds_its_own_send() -> None:
    flights = process_ledger().flights
    gone = []
    for number in range(3):
        scope, environ = Thing(method="GET", path="/a"), Thing(REQUEST_METHOD="GET")
        gone += [weakref.ref(scope), weakref.ref(environ)]
        asgi = flights.asgi(lambda *_: "GET /a", scope, print, True)
        wsgi = flights.wsgi(lambda *_: "GET /b", environ, print, True)
        scope["state"], environ["start"] = asgi, wsgi
        asgi.over()
        wsgi.over(number == 1)
        del scope, environ, asgi, wsgi
    assert [ref() for ref in gone] == [None] * 6
    assert process_ledger().in_flight == 0
    figures = {row.route: (row.requests, row.errors) for row in process_ledger().figures(["GET /a", "GET /b"])}
    assert figures == {"GET /a": (3, 0), "GET /b": (3, 1)}


def test_a_million_requests_leave_nothing_behind() -> None:
    ledger = process_ledger()
    flights = ledger.flights

    class Route:
        path = "/users/{id}"

    def some() -> None:
        for number in range(20_000):
            request = flights.asgi(lambda *_: "GET /a", {"method": "GET", "route": Route}, lambda message: message, True)
            request({"type": "http.response.start", "status": 200 + number})
            request.over()
            answer = flights.wsgi(lambda *_: "GET /b", {}, lambda *arguments: arguments, number % 2 == 0)
            answer(f"{200 + number % 300} OK", [])
            assert list(answer.answer([b"x"])) == [b"x"]
            answer.close()
            ledger.end(ledger.begin(), f"job:{number % 5}")
            ledger.forget(ledger.begin("job:never"))
            del request, answer

    some()
    tracemalloc.start()
    some()
    ledger.write()
    before = tracemalloc.get_traced_memory()[0]
    for _ in range(3):
        some()
    ledger.write()
    assert tracemalloc.get_traced_memory()[0] - before < 10_000
    tracemalloc.stop()
    assert ledger.in_flight == 0
    (users,) = ledger.figures(["GET /users/{id}"])
    assert users.requests == 100_000
    assert users.errors == 5 * (20_000 - 300)


def test_whatever_the_program_gives_no_request_fails_by_it() -> None:
    class Broken:
        def __getattr__(self, name: str) -> object:
            raise RuntimeError(name)

        def __getitem__(self, name: str) -> object:
            raise RuntimeError(name)

    def named(*_: object) -> str:
        return "GET /named"

    ledger = process_ledger()
    for scope in (
        {"route": Broken(), "method": "GET"},
        {"route": None},
        {"method": None, "route": object()},
        {"root_path": Broken()},
    ):
        request = ledger.flights.asgi(named, scope, lambda message: message, True)
        for message in ({}, None, Broken(), {"type": Broken()}, {"type": "http.response.start", "status": "200 OK"}):
            assert request(message) is message
        request.over()
        request.over()
    for environ in ({"werkzeug.request": Broken(), "REQUEST_METHOD": "GET"}, {"werkzeug.request": None}, {}):
        answer = ledger.flights.wsgi(named, environ, lambda *arguments: arguments, True)
        assert answer(None, []) == (None, [])
        assert answer("", [], None) == ("", [], None)
        answer.close()
        answer.close()
        assert list(answer) == []
    assert sum(ledger.counts()) == 7
    assert ledger.in_flight == 0


class _Once:
    def __await__(self) -> Generator[None, None, None]:
        yield


async def _nothing(*_: object) -> None:
    pass


def _scope(path: str) -> dict[str, Any]:
    return {"type": "http", "method": "GET", "path": path, "root_path": f"/mounted at{path}"}


def test_requests_that_the_collector_ends_while_those_under_way_are_listed_do_no_harm() -> None:
    async def application(scope: Any, receive: Any, send: Any) -> None:
        await _Once()

    middleware = MemwatchMiddleware(application)
    before = gc.get_threshold()
    gc.disable()
    try:
        requests: list[Any] = []
        for number in range(3000):
            request: Any = middleware(_scope(f"/{number}"), _nothing, _nothing)
            request.send(None)
            requests.append(request)
        requests.append(requests)  # connections that were dropped, in a cycle
        del requests, request
        kept = [(1, 2) for _ in range(3000)] + [(1, 2, 3) for _ in range(3000)]  # no tuple is ready to be used again
        gc.set_threshold(gc.get_count()[0] + 701, 1, 1)
        gc.enable()
        listed = process_ledger().flights.under_way()
    finally:
        gc.enable()
        gc.set_threshold(*before)
    assert kept
    assert len(repr(listed)) > 2 * len(listed)
    assert all(len(arguments) in (0, 3) for _, arguments in listed)
    gc.collect()


def test_an_interrupt_while_a_route_is_named_reaches_the_program() -> None:
    async def application(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200})

    def route(scope: Any) -> str:
        os.kill(os.getpid(), signal.SIGINT)
        return "never reached"

    request: Any = MemwatchMiddleware(application, route=route)(_scope("/"), _nothing, _nothing)
    with pytest.raises(KeyboardInterrupt):
        try:
            request.send(None)
        except StopIteration:
            pass
        for _ in range(1000):
            pass  # at the latest when the program goes on


def test_a_message_whose_type_is_a_member_of_an_enumeration_is_understood() -> None:
    class Text(str):
        pass

    async def application(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": Text("http.response.start"), "status": 503})

    request: Any = MemwatchMiddleware(application, route=lambda scope: "GET /")(_scope("/"), _nothing, _nothing)
    with pytest.raises(StopIteration):
        request.send(None)
    (figures,) = process_ledger().figures(["GET /"])
    assert (figures.requests, figures.errors) == (1, 1)


def test_requests_under_way_are_those_of_their_row_however_long_its_name_and_however_many_there_are() -> None:
    book = routes.ledger()
    long = "job:" + "x" * 300
    under_way = [book.begin(long) for _ in range(5)]
    book.add(long, 0.01)
    for number in range(300):
        book.add(f"GET /{number}", 0.01)
    under_way += [book.begin("GET /one more") for _ in range(7)]
    rows = {row.route: row.in_flight for row in book.figures(book.names()) if row.in_flight}
    assert sorted(rows.values()) == [5, 7]
    assert rows["(other)"] == 7
    del under_way


def test_a_name_that_utf_8_cannot_say_is_one_that_it_can() -> None:
    book = routes.ledger()
    book.add("GET /\ud800", 0.01)
    assert book.names() == ["GET /?"]
