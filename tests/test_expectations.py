from __future__ import annotations

import gc
import types

import pytest

import memwatch
from memwatch.expectations import Expectations, retaining_path
from memwatch.testing import FakeClock, ScriptedSource
from memwatch.watcher import Watcher


class Session:
    pass


class Slotted:
    __slots__ = ()


HOLDER: dict[str, object] = {}


@pytest.fixture(autouse=True)
def _empty_holder():
    yield
    HOLDER.clear()


def test_an_object_that_goes_in_time_is_no_finding() -> None:
    expectations, session = Expectations(), Session()
    expectation = expectations.add(session, now_s=0.0, within_s=30.0, reason="request finished")
    del session
    assert expectation.met
    assert expectations.overdue(100.0, 1000) == []
    assert len(expectations) == 0


def test_an_object_still_alive_is_one_finding_with_its_type_reason_age_and_holder() -> None:
    expectations = Expectations()
    HOLDER["current"] = Session()
    expectations.add(HOLDER["current"], now_s=0.0, within_s=30.0, reason="request finished")
    assert expectations.overdue(29.0, 1000) == []
    (finding,) = expectations.overdue(31.0, 1000)
    assert finding["type"].endswith("test_expectations.Session")
    assert (finding["reason"], finding["alive_s"]) == ("request finished", 31.0)
    assert finding["held_by"][0].endswith("test_expectations → HOLDER")
    assert expectations.overdue(99.0, 1000) == []


def test_a_cycle_the_collector_has_not_reached_yet_is_no_finding() -> None:
    expectations, session = Expectations(), Session()
    session.me = session  # type: ignore[attr-defined]
    gc.disable()
    try:
        expectations.add(session, now_s=0.0, within_s=1.0, reason="")
        del session
        assert expectations.overdue(2.0, 1000) == []
    finally:
        gc.enable()


def test_what_cannot_be_weakly_referenced_is_refused_with_what_to_do() -> None:
    with pytest.raises(TypeError, match=r"a Slotted cannot be weakly referenced.*__weakref__"):
        Expectations().add(Slotted(), now_s=0.0, within_s=1.0, reason="")


def test_on_a_large_heap_no_holder_is_searched_and_the_finding_says_so() -> None:
    expectations = Expectations()
    HOLDER["x"] = Session()
    expectations.add(HOLDER["x"], now_s=0.0, within_s=1.0, reason="")
    (finding,) = expectations.overdue(2.0, 1e8)
    assert finding["held_by"] == []
    assert "too large" in finding["note"]


def test_the_path_names_module_attribute_and_containers_and_never_calls_repr() -> None:
    class Loud:
        def __repr__(self) -> str:
            raise AssertionError("user code ran")

    module = types.ModuleType("app.sessions")
    import sys

    sys.modules["app.sessions"] = module
    try:
        module._STORE = {Session(): [Loud()]}  # type: ignore[attr-defined]
        subject = next(iter(module._STORE.values()))[0]  # type: ignore[attr-defined]
        path = retaining_path(subject)
    finally:
        del sys.modules["app.sessions"]
    assert path[0] == "module app.sessions → _STORE"
    assert path[1:] == ["dict (1 entries)", "list (1 entries)"]


def test_the_watcher_tells_a_finding_to_its_sinks_and_records_it() -> None:
    expectations, clock = Expectations(), FakeClock()
    told = []
    watcher = Watcher(
        directory=False,
        clock=clock,
        source=ScriptedSource([{"rss": 1e6, "blocks": 1000.0}]),
        expectations=expectations,
        sinks=[told.append],
    )
    HOLDER["x"] = Session()
    expectations.add(HOLDER["x"], now_s=clock.monotonic(), within_s=15.0, reason="closed")
    for _ in range(3):
        watcher.tick()
        clock.advance(10.0)
    (report,) = told
    (event,) = [event for event in report.events if event.what == "finding"]
    assert event.details["reason"] == "closed"


def test_expect_gone_takes_a_duration_with_its_unit() -> None:
    session = Session()
    with pytest.raises(ValueError, match="'30' is not a number with a unit of time"):
        memwatch.expect_gone(session, within="30")
    assert not memwatch.expect_gone(session, within="30s", reason="test").met
