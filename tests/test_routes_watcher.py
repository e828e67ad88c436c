"""Routes as a watcher sees them: in the report, the record, the log, and what a stop leaves behind."""

from __future__ import annotations

import gc
import json
import logging
import random
import weakref
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from memwatch import routes
from memwatch.model import Report
from memwatch.record import read_report
from memwatch.report import brief
from memwatch.testing import FakeClock
from memwatch.watcher import Watcher

KIB, MIB = 2**10, 2**20


@pytest.fixture(autouse=True)
def _empty_ledger() -> Iterator[None]:
    routes.ledger().clear()
    yield
    routes.ledger().clear()


class Service:
    """A service on a clock that is moved by hand: requests of four routes in each interval, and what they do to memory."""

    def __init__(self, leak: float, *, route: str = "POST /login", channel: str = "heap", **settings: Any) -> None:
        self.rng = random.Random(1)
        self.clock = FakeClock()
        self.live = 100.0 * MIB
        self.fds = 20.0
        self.leak, self.route, self.channel = leak, route, channel
        settings = {"interval": "10s", "directory": False, "evidence": "off", "memory_limit": "8GiB", **settings}
        self.watcher = Watcher(clock=self.clock, source=self, **settings)

    def read(self, on_error: object = None) -> Mapping[str, float]:
        noise = self.rng.gauss(0, 30 * KIB)
        return {"heap": self.live + noise, "native": 20.0 * MIB, "rss": self.live + 50 * MIB, "fds": self.fds, "cpu": 1.0}

    def run(self, ticks: int) -> Report:
        book = routes.ledger()
        for _ in range(ticks):
            for route, mean in (("GET /", 200), (self.route, 80), ("GET /users/{id}", 120), ("job:report", 20)):
                for _ in range(max(0, round(self.rng.gauss(mean, mean / 4)))):
                    book.end(book.begin(route), route, failed=route == "GET /" and self.rng.random() < 0.01)
                    if route == self.route and self.channel == "heap":
                        self.live += self.leak
                    elif route == self.route:
                        self.fds += self.leak
            self.clock.advance(10.0)
            self.watcher.tick()
        return self.watcher.report()


def test_the_route_that_leaks_is_named_in_every_kind_of_report(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    service = Service(8 * KIB, directory=tmp_path)
    with caplog.at_level(logging.WARNING, "memwatch"):
        report = service.run(200)
    assert report.verdict.state in ("growing", "leaking")
    first = report.routes[0]
    assert first["route"] == "POST /login"
    assert first["blamed"] is True
    assert first["channel"] == "live"
    assert first["bytes_per_request"] == pytest.approx(8 * KIB, rel=0.1)
    assert first["bytes_per_request_low"] < 8 * KIB * 1.05 and first["bytes_per_request_high"] > 8 * KIB * 0.95
    assert first["share"] == pytest.approx(1.0, abs=0.15)
    assert [row["route"] for row in report.routes if row["blamed"]] == ["POST /login"]
    assert report.routes_note is None
    text = report.render("text")
    assert "  POST /login leaks " in text
    assert "KiB per request (95 %: " in text
    assert "**Route:** POST /login leaks " in report.render("markdown")
    assert json.loads(report.render("json"))["routes"][0]["route"] == "POST /login"
    assert "POST /login leaks " in brief(report)
    # Told once in the log and among the events, and nobody is accused while it may be a cache that fills.
    states = [report.verdict.state]
    with caplog.at_level(logging.WARNING, "memwatch"):
        while states[-1] != "leaking" and len(states) < 20:
            assert not [record for record in caplog.records if "POST /login leaks" in record.getMessage()]
            states.append(service.run(20).verdict.state)
        report = service.run(20)
    assert states[0] == "growing"
    assert sum("POST /login leaks" in record.getMessage() and "LEAK" not in record.getMessage() for record in caplog.records) == 1
    told = [event for event in report.events if event.details.get("note") == "route"]
    assert [event.details["route"] for event in told] == ["POST /login"]
    recorded = read_report(next(tmp_path.glob("*.memwatch")))
    assert recorded.routes[0]["route"] == "POST /login"
    assert recorded.routes[0]["blamed"] is True
    service.watcher.stop()


def test_requests_errors_rates_and_times_are_in_the_report_while_nothing_grows() -> None:
    service = Service(0.0)
    report = service.run(30)
    assert report.verdict.state in ("stable", "warming-up")
    rows = {row["route"]: row for row in report.routes}
    assert report.routes[0]["route"] == "GET /"  # the busiest first
    assert 14 <= rows["GET /"]["rate_per_s"] <= 26
    assert 0 < rows["GET /"]["errors"] < 0.05 * rows["GET /"]["requests"]
    assert rows["GET /"]["p50_s"] <= rows["GET /"]["p95_s"] <= rows["GET /"]["p99_s"]
    assert all(row["bytes_per_request"] is None and row["blamed"] is False for row in report.routes)
    assert report.routes_note is None
    assert "which route it is" not in report.render("text")


def test_growth_that_no_route_explains_is_said_to_be_that() -> None:
    service = Service(0.0)
    original = service.read

    def read(on_error: object = None) -> Mapping[str, float]:
        service.live += 0.8 * MIB
        return original()

    service.read = read  # type: ignore[method-assign]
    report = service.run(200)
    assert report.verdict.state == "leaking"
    assert not any(row["blamed"] for row in report.routes)
    assert report.routes_note == "the growth goes on with time, whatever is requested"
    assert "which route it is cannot be told: the growth goes on with time" in report.render("text")


def test_the_route_is_named_while_a_heap_that_grows_fast_is_hardly_ever_read() -> None:
    service = Service(64 * KIB, memory_limit="64GiB")
    original, reads = service.read, 0

    def read(on_error: object = None) -> Mapping[str, float]:
        nonlocal reads
        reads += 1
        return {name: value for name, value in original().items() if name != "heap" or reads % 20 == 1}

    service.read = read  # type: ignore[method-assign]
    report = service.run(100)
    assert report.verdict.state in ("growing", "leaking")
    assert [row["route"] for row in report.routes if row["blamed"]] == ["POST /login"]
    assert report.routes[0]["channel"] == "rss"
    assert report.routes[0]["bytes_per_request"] == pytest.approx(64 * KIB, rel=0.1)
    assert 7 <= report.routes[0]["rate_per_s"] <= 9


def test_a_route_that_leaks_descriptors_is_named_with_their_number() -> None:
    report = Service(0.02, channel="fds").run(200)
    assert report.verdict.channel == "fds"
    assert report.routes[0]["route"] == "POST /login"
    assert report.routes[0]["count_per_request"] == pytest.approx(0.02, rel=0.1)
    assert "POST /login leaks 0.02 open descriptors per request" in report.render("text")


def test_the_section_of_routes_is_at_most_ten_lines_at_any_usual_width() -> None:
    report = Service(8 * KIB).run(200)
    rows = tuple({**report.routes[1], "route": f"GET /{number}/of/many"} for number in range(30))
    report = replace(report, routes=(report.routes[0], *rows))
    blocks = report.render("text").split("\n\n")
    (block,) = [block for block in blocks if "p99" in block]
    assert len(block.splitlines()) <= 10
    assert "… and 25 more" in block


def test_whatever_a_record_says_of_routes_is_rendered() -> None:
    report = Service(0.0).run(5)
    strange = (
        {"route": "GET /\x1b[31m", "requests": "many", "rate_per_s": float("nan"), "together_with": 3},
        {"blamed": True, "bytes_per_request": 10**400, "share": None},
        {"route": ["x"], "blamed": True, "count_per_request": 1.5, "together_with": ["a", 7]},
    )
    whole = json.loads(json.dumps(replace(report, routes=strange).to_dict()))
    read = Report.from_dict(whole)
    for format in ("text", "markdown", "json"):
        assert "\x1b" not in read.render(format)
    assert brief(read)


def test_a_report_without_routes_reads_as_one_without() -> None:
    whole = Service(0.0).run(2).to_dict()
    del whole["routes"], whole["routes_note"]
    assert Report.from_dict(whole).routes == ()
    with pytest.raises(ValueError, match="routes"):
        Report.from_dict(whole | {"routes": 3})


def test_no_look_is_taken_while_nothing_grows(monkeypatch: pytest.MonkeyPatch) -> None:
    from memwatch.routes import regression

    def refuse(*_: object, **__: object) -> object:
        raise AssertionError("nothing grows")

    monkeypatch.setattr(regression, "attribute", refuse)
    service = Service(0.0)
    service.run(60)
    assert service.watcher.failures == {}


def test_a_look_that_fails_is_told_and_costs_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    from memwatch.routes import regression

    def fails(*_: object, **__: object) -> object:
        raise ArithmeticError("on purpose")

    monkeypatch.setattr(regression, "attribute", fails)
    service = Service(8 * KIB)
    report = service.run(150)
    assert report.verdict.state in ("growing", "leaking")
    assert service.watcher.failures == {"routes": "ArithmeticError: on purpose"}


# -- single requests, with real memory -----------------------------------------------------------------------------------------


def test_a_request_that_takes_30_mib_is_an_event_and_a_line_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    watcher = Watcher(interval="1h", directory=False, evidence="off")
    book = routes.ledger()
    book.end(book.begin(), "GET /")
    watcher.tick()
    number = book.begin()
    kept = bytearray(30 * MIB)
    kept[:: 4 * KIB] = b"x" * (30 * MIB // (4 * KIB))
    book.end(number, "GET /export")
    with caplog.at_level(logging.WARNING, "memwatch"):
        watcher.tick()
    (event,) = [event for event in watcher.report().events if event.details.get("note") == "request"]
    assert event.details["route"] == "GET /export"
    assert event.details["grown"] == pytest.approx(30 * MIB, rel=0.1)
    assert "GET /export grew resident memory by 3" in caplog.text
    assert "in one request of" in caplog.text
    watcher.stop()
    del kept


def test_a_stopped_watcher_is_not_kept_by_the_ledger() -> None:
    book = routes.ledger()
    watcher = Watcher(interval="1h", directory=False, evidence="off")
    book.end(book.begin(), "GET /")
    watcher.tick()
    assert book.read_rss is not None
    assert book.read_rss() > MIB  # type: ignore[operator]
    watcher.stop()
    assert book.read_rss is None
    gone = weakref.ref(watcher)
    del watcher
    gc.collect()
    assert gone() is None


def test_a_watcher_that_was_dropped_without_a_stop_is_not_kept_either() -> None:
    book = routes.ledger()
    watcher = Watcher(interval="1h", directory=False, evidence="off")
    book.end(book.begin(), "GET /")
    watcher.tick()
    gone = weakref.ref(watcher)
    del watcher
    gc.collect()
    assert gone() is None
    assert book.read_rss is not None
    assert book.read_rss() is None


def test_the_setting_of_off_measures_no_single_request() -> None:
    watcher = Watcher(interval="1h", directory=False, evidence="off", request_growth="off")
    book = routes.ledger()
    book.end(book.begin(), "GET /")
    watcher.tick()
    assert book.threshold_bytes == 0
    watcher.stop()
