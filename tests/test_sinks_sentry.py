"""What a program's Sentry receives: the real SDK, with a transport that keeps the envelopes."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import report_cases
import sentry_sdk
from conftest import Run
from sentry_sdk.envelope import Envelope
from sentry_sdk.integrations import DidNotEnable, _installed_integrations, _processed_integrations
from sentry_sdk.integrations.logging import _IGNORED_LOGGERS, LoggingIntegration
from sentry_sdk.transport import Transport
from sinks_runs import MIB, ramp, run, watcher_of

import memwatch
from memwatch.config import SettingError
from memwatch.model import Event, Report, Sample
from memwatch.pressure import ReliefHooks
from memwatch.sinks.sentry import ALARM_AGAIN_S, MemwatchIntegration, SentrySink
from memwatch.sinks.sentry_event import SHOWN, event_of, fingerprint, level

DSN = "http://key@127.0.0.1:9/1"
SAMPLE = Sample(0.0, 0.0, {})


class Kept(Transport):
    """Keeps what Sentry would be sent."""

    def __init__(self) -> None:
        super().__init__()
        self.envelopes: list[Envelope] = []
        self.flushed: list[float] = []

    def capture_envelope(self, envelope: Envelope) -> None:
        self.envelopes.append(envelope)

    def flush(self, timeout: float, callback: Any = None) -> None:
        self.flushed.append(timeout)

    @property
    def events(self) -> list[dict[str, Any]]:
        return [event for envelope in self.envelopes if (event := envelope.get_event()) is not None]

    def attachments(self, number: int = 0) -> dict[str, bytes]:
        event = [envelope for envelope in self.envelopes if envelope.get_event() is not None][number]
        return {
            str(item.headers.get("filename")): item.get_bytes() for item in event.items if item.headers.get("type") == "attachment"
        }

    @property
    def metrics(self) -> list[dict[str, Any]]:
        return [
            metric
            for envelope in self.envelopes
            for item in envelope.items
            if item.headers.get("type") == "trace_metric"
            for metric in json.loads(item.get_bytes())["items"]
        ]


@pytest.fixture(autouse=True)
def _no_sentry_left() -> Iterator[None]:
    ignored = set(_IGNORED_LOGGERS)
    yield
    sentry_sdk.get_client().close(timeout=0)
    sentry_sdk.get_global_scope().set_client(None)
    sentry_sdk.get_global_scope().clear()
    sentry_sdk.get_isolation_scope().clear()
    _IGNORED_LOGGERS.clear()
    _IGNORED_LOGGERS.update(ignored)
    _processed_integrations.discard("memwatch")
    _installed_integrations.discard("memwatch")


@pytest.fixture
def init() -> Callable[..., Kept]:
    def begin(**options: Any) -> Kept:
        kept = Kept()
        options = {"default_integrations": False, "auto_session_tracking": False} | options
        sentry_sdk.init(dsn=DSN, transport=kept, **options)
        return kept

    return begin


def exception(event: dict[str, Any]) -> dict[str, Any]:
    (found,) = event["exception"]["values"]
    return dict(found)


def test_a_leak_arrives_as_one_exception_with_its_proof(init: Callable[..., Kept]) -> None:
    kept = init()
    watcher, clock = watcher_of(ramp(), [SentrySink()], labels={"team": "shop"})
    states = run(watcher, clock, 110)
    assert states[-1] == "leaking"
    (event,) = kept.events
    found = exception(event)
    assert (found["type"], found["mechanism"]) == ("MemoryLeakSuspected", {"type": "memwatch", "handled": True})
    assert found["value"].startswith("api  Python heap  +12.0 MiB/min")
    assert event["level"] == "error"  # above the growth limit
    assert event["fingerprint"] == ["memwatch", "leak", watcher.report().fingerprint]
    tags = {key: value for key, value in event["tags"].items() if key.startswith("memwatch.")}
    assert tags == {
        "memwatch.occasion": "leak",
        "memwatch.process": "api",
        "memwatch.state": "leaking",
        "memwatch.kind": "python-heap",
        "memwatch.severity": "critical",
        "memwatch.label.team": "shop",
    }
    assert event["contexts"]["memwatch"]["fingerprint"] == watcher.report().fingerprint
    proof = json.loads(kept.attachments()["evidence.json"])
    assert (proof["schema"], proof["verdict"]["state"]) == (1, "leaking")


def test_the_evidence_is_the_stack_the_suspects_and_a_flame_graph(init: Callable[..., Kept]) -> None:
    kept = init()
    SentrySink().told("leak", report_cases.leak())
    (event,) = kept.events
    frames = exception(event)["stacktrace"]["frames"]
    assert [(frame["filename"], frame["lineno"], frame["function"]) for frame in frames][-1] == (
        "app/sessions.py", 48, "SessionStore.add",
    )  # fmt: skip
    assert event["level"] == "error"  # most of the growth is explained
    context = event["contexts"]["memwatch"]
    assert context["explained"] == "93 %"
    assert any("app.sessions.Session" in line for line in context["suspects"])
    assert all(not isinstance(value, dict) for value in context.values())
    assert set(kept.attachments()) == {"evidence.json", "heap.speedscope.json"}
    assert json.loads(kept.attachments()["heap.speedscope.json"])["profiles"][0]["unit"] == "bytes"


def test_no_key_of_an_event_is_a_name_of_the_programs() -> None:
    """Sentry's scrubber empties what is called session, token or auth."""

    def keys(value: Any) -> set[str]:
        if isinstance(value, dict):
            return set(value) | {key for item in value.values() for key in keys(item)}
        return {key for item in value for key in keys(item)} if isinstance(value, list) else set()

    names = keys(event_of("leak", report_cases.leak()))
    assert not [name for name in names if "ession" in name or "token" in name]


def test_the_context_is_bounded_and_the_attachment_has_the_rest(init: Callable[..., Kept]) -> None:
    kept = init()
    report = report_cases.leak()
    many = tuple(replace(report.evidence[1].suspects[0], label=f"app.Type{n}" + "x" * 1000) for n in range(100))
    report = replace(report, evidence=(replace(report.evidence[1], suspects=many),))
    SentrySink().told("leak", report)
    suspects = kept.events[0]["contexts"]["memwatch"]["suspects"]
    assert len(suspects) == SHOWN
    assert max(map(len, suspects)) <= 300
    assert len(json.loads(kept.attachments()["evidence.json"])["evidence"][0]["suspects"]) == 100


def test_the_fingerprint_is_that_of_another_worker_on_another_host_and_release() -> None:
    one = report_cases.leak()
    process = replace(one.process, pid=7, host="web-9", labels={"version": "2"}, started=1.0)
    other = replace(one, process=process, verdict=replace(one.verdict, rate=1.0, grown=5e9, exhausted_in_s=3.0))
    assert event_of("leak", one)["fingerprint"] == event_of("doubled", other)["fingerprint"]
    for occasion in ("peak", "growth", "exhaustion", "finding"):
        assert fingerprint(occasion, one) == fingerprint(occasion, other)
        assert fingerprint(occasion, one)[:2] == ("memwatch", occasion)


def test_a_leak_is_sent_once_and_again_when_it_has_doubled(init: Callable[..., Kept]) -> None:
    kept = init()
    sink, report = SentrySink(), report_cases.leak()

    def tell(occasion: Any, factor: float) -> int:
        sink.told(occasion, replace(report, verdict=replace(report.verdict, grown=report.verdict.grown * factor)))
        return len(kept.events)

    # It comes, goes, and comes again smaller and larger, as with traffic.
    assert [tell("leak", 1), tell("over", 1), tell("leak", 0.5), tell("leak", 1.9), tell("doubled", 2), tell("leak", 2.5)] == [
        1, 1, 1, 1, 2, 2,
    ]  # fmt: skip
    assert {tuple(event["fingerprint"]) for event in kept.events} == {("memwatch", "leak", report.fingerprint)}


def test_a_level_that_is_crossed_back_and_forth_is_one_event_an_hour(init: Callable[..., Kept]) -> None:
    kept, now = init(), [0.0]
    sink = SentrySink(clock=lambda: now[0])
    for _ in range(10):
        sink.told("peak", report_cases.leak())
        now[0] += ALARM_AGAIN_S / 5 - 1
    assert len(kept.events) == 2


def test_what_is_remembered_as_sent_is_bounded(init: Callable[..., Kept]) -> None:
    kept = init()
    sink, report = SentrySink(), report_cases.leak()
    for number in range(1000):
        sink.told("leak", replace(report, process=replace(report.process, name=f"p{number:c}" + "abcdefghij"[number % 10])))
    assert len(kept.events) == 1000
    assert len(sink._told) <= 64


def test_high_memory_fast_growth_and_near_exhaustion_are_issues_of_their_own(init: Callable[..., Kept]) -> None:
    kept = init()
    watcher, clock = watcher_of([{"rss": rss * MIB, "cpu": 1.0} for rss in (50, 75, 90)], [SentrySink()], memory_limit="100MiB")
    run(watcher, clock, 3)
    assert [(exception(event)["type"], event["level"], event["tags"]["memwatch.level"]) for event in kept.events] == [
        ("HighMemory", "warning", "warning"),
        ("HighMemory", "error", "critical"),
    ]
    assert "memory has reached the critical level, 90.0 of 100 MiB" in exception(kept.events[1])["value"]
    del kept.envelopes[:]
    watcher, clock = watcher_of(ramp(30.0), [SentrySink()], memory_limit="8GiB")
    run(watcher, clock, 150)
    assert {"MemoryLeakSuspected", "MemoryExhaustionNear"} <= {exception(event)["type"] for event in kept.events}
    SentrySink().told("growth", report_cases.leak())
    assert exception(kept.events[-1])["type"] == "FastMemoryGrowth"


def test_a_leak_of_descriptors_is_not_called_one_of_memory(init: Callable[..., Kept]) -> None:
    report = report_cases.leak()
    verdict = replace(report.verdict, kind="descriptors", channel="fds")
    (found,) = event_of("leak", replace(report, verdict=verdict))["exception"]["values"]
    assert found["type"] == "ResourceLeakSuspected"


def test_an_object_that_should_be_gone_is_an_issue_with_its_holder(init: Callable[..., Kept]) -> None:
    finding = {"type": "app.Request", "alive_s": 31.0, "reason": "request finished", "held_by": ["app._SEEN"], "note": None}
    report = replace(report_cases.leak(), events=(Event(1.0, "finding", finding),))
    event = event_of("finding", report)
    (found,) = event["exception"]["values"]
    assert (found["type"], event["level"]) == ("ObjectStillAlive", "warning")
    assert "app.Request is still alive (request finished), held by app._SEEN" in found["value"]
    assert event["fingerprint"][-2:] == ["app.Request", "request finished"]


@pytest.mark.parametrize(
    ("left_s", "explains", "severity", "expected"),
    [
        (None, 0.0, "warning", "warning"),
        (None, 0.9, "warning", "error"),
        (None, 0.0, "critical", "error"),
        (300.0, 0.9, "critical", "fatal"),
    ],
)
def test_the_level_rises_with_the_proof_and_with_the_hurry(left_s: Any, explains: float, severity: Any, expected: str) -> None:
    report = report_cases.leak()
    evidence = (replace(report.evidence[0], explains=explains),)
    report = replace(report, evidence=evidence, verdict=replace(report.verdict, exhausted_in_s=left_s, severity=severity))
    assert level("leak", report) == expected


def test_only_what_is_fatal_is_waited_for(init: Callable[..., Kept]) -> None:
    kept = init()
    report = report_cases.leak()
    SentrySink().told("leak", report)
    assert kept.flushed == []
    SentrySink().told("leak", replace(report, verdict=replace(report.verdict, exhausted_in_s=60.0)))
    assert kept.events[-1]["level"] == "fatal"
    assert kept.flushed == [2.0]


def test_what_is_told_before_the_program_initialises_sentry_is_sent_then(init: Callable[..., Kept]) -> None:
    sink = SentrySink()
    for number in range(20):
        sink.told("leak", replace(report_cases.leak(), process=replace(report_cases.process(), name="ab"[number % 2] * number)))
    sink.ticked(SAMPLE, report_cases.leak())
    kept = init()
    sink.ticked(SAMPLE, report_cases.leak())
    assert [event["tags"]["memwatch.process"] for event in kept.events] == ["a" * 16, "b" * 17, "a" * 18, "b" * 19]
    sink.ticked(SAMPLE, report_cases.leak())
    assert len(kept.events) == 4


def test_a_sentry_that_was_never_initialised_is_said_at_the_end(caplog: pytest.LogCaptureFixture) -> None:
    sink = SentrySink()
    sink.told("leak", report_cases.leak())
    sink.ended()
    assert "sentry was told nothing of 1 reports: the program never initialised it" in caplog.text


def test_of_a_months_events_the_newest_are_attached(init: Callable[..., Kept]) -> None:
    kept = init()
    events = tuple(Event(float(n), "note", {"note": str(n)}) for n in range(5000))
    SentrySink().told("leak", replace(report_cases.leak(), events=events))
    attached = json.loads(kept.attachments()["evidence.json"])["events"]
    assert [event["note"] for event in attached] == [str(n) for n in range(4800, 5000)]


def test_a_breadcrumb_of_pressure_and_relief_is_on_what_the_program_reports_next(init: Callable[..., Kept]) -> None:
    kept, hooks = init(), ReliefHooks()
    hooks.add(lambda pressure: 5 * 2**20)
    readings = [{"rss": rss * MIB} for rss in (50, 75)]
    watcher, clock = watcher_of(readings, [SentrySink()], memory_limit="100MiB", hooks=hooks)
    run(watcher, clock, 2)
    sentry_sdk.capture_message("an error of the program")
    crumbs = [(crumb["category"], crumb["message"]) for crumb in kept.events[-1]["breadcrumbs"]["values"]]
    assert ("memwatch.pressure", "warning (was normal): 75.0 of 100 MiB resident") in crumbs
    assert any(category == "memwatch.relief" and "freed 5.00 MiB" in message for category, message in crumbs)


def test_the_log_of_a_leak_is_no_second_event_while_the_sink_is_active(init: Callable[..., Kept]) -> None:
    kept = init(integrations=[LoggingIntegration(event_level=logging.WARNING)])
    watcher, clock = watcher_of(ramp(), [SentrySink()])
    run(watcher, clock, 110)
    assert [exception(event)["type"] for event in kept.events] == ["MemoryLeakSuspected"]
    watcher.stop()
    logging.getLogger("memwatch").warning("after the end")
    assert kept.events[-1]["logentry"]["message"] == "after the end"


def test_memwatch_logs_leaks_as_warnings_which_are_no_events_by_default(
    init: Callable[..., Kept], caplog: pytest.LogCaptureFixture
) -> None:
    kept = init(integrations=[LoggingIntegration()])
    watcher, clock = watcher_of(ramp(), [])
    run(watcher, clock, 110)
    assert [record.levelname for record in caplog.records if record.message.startswith("LEAK")] == ["WARNING"]
    assert kept.events == []


def test_the_programs_own_scopes_are_left_as_they_were(init: Callable[..., Kept]) -> None:
    kept = init()
    SentrySink().told("leak", report_cases.leak())
    sentry_sdk.capture_message("an error of the program")
    assert not [key for key in kept.events[-1].get("tags", {}) if key.startswith("memwatch")]
    assert "memwatch" not in kept.events[-1].get("contexts", {})
    assert kept.attachments(1) == {}


def test_metrics_are_sent_once_a_minute_where_they_are_wanted(init: Callable[..., Kept]) -> None:
    kept, now = init(), [0.0]
    sinks = [SentrySink(metrics=True, clock=lambda: now[0]), SentrySink()]
    watcher, clock = watcher_of(ramp(0.0), sinks)
    for _ in range(12):
        run(watcher, clock, 1)
        now[0] += 10.0
    sentry_sdk.get_client().flush(timeout=2)
    limits = [metric for metric in kept.metrics if metric["name"] == "memwatch.memory.limit"]
    assert [(metric["value"], metric["unit"]) for metric in limits] == [(4 * 2**30, "byte")] * 2
    heap = [metric for metric in kept.metrics if metric["name"] == "memwatch.memory.usage"]
    assert {metric["attributes"]["memwatch.kind"]["value"] for metric in heap} >= {"heap", "native"}


def test_the_integration_starts_the_watcher_with_its_arguments_and_the_sink(init: Callable[..., Kept]) -> None:
    told: list[Report] = []
    try:
        kept = init(integrations=[MemwatchIntegration(interval="30s", directory=False, name="shop", sinks=[told.append])])
        watcher = memwatch.current()
        assert watcher is not None
        assert (watcher.config.interval_s, watcher.config.name) == (30.0, "shop")
        assert len(watcher._audience.sinks) == 2
        for sink in watcher._audience.sinks.values():
            getattr(sink, "told", lambda occasion, report: None)("leak", report_cases.leak())
        assert [exception(event)["type"] for event in kept.events] == ["MemoryLeakSuspected"]
    finally:
        memwatch.stop()


def test_an_integration_with_a_malformed_setting_says_so_at_init(init: Callable[..., Kept]) -> None:
    with pytest.raises((SettingError, DidNotEnable), match="interval"):
        init(integrations=[MemwatchIntegration(interval="10")])
    assert memwatch.current() is None


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")  # 3.12 and later
def test_in_a_forked_child_a_leak_of_the_parent_is_sent_for_the_child_too(init: Callable[..., Kept]) -> None:
    kept = init()
    sink = SentrySink()
    sink.told("leak", report_cases.leak())
    ours, theirs = os.pipe()
    child = os.fork()
    if child == 0:
        sink.told("leak", report_cases.leak())
        os.write(theirs, str(len(kept.events)).encode())
        os._exit(0)
    os.waitpid(child, 0)
    os.close(theirs)
    with open(ours) as answer:
        assert answer.read() == "2"


def test_naming_the_sink_imports_no_sentry_and_what_is_told_meanwhile_is_sent_once_the_program_has_it(
    python: Run, tmp_path: Path
) -> None:
    program = f"""
        import sys
        sys.path[:0] = [{str(Path(__file__).parent)!r}]
        import report_cases
        from memwatch.sinks import by_name
        sink = by_name("sentry")
        assert by_name("sentry") is sink
        sink.told("leak", report_cases.leak())
        sink.ticked(None, None)
        assert "sentry_sdk" not in sys.modules
        import sentry_sdk
        from sentry_sdk.transport import Transport
        class Kept(Transport):
            sent = []
            def capture_envelope(self, envelope): self.sent.append(envelope.get_event())
        sentry_sdk.init(dsn={DSN!r}, transport=Kept())
        sink.ticked(None, None)
        print([event["exception"]["values"][0]["type"] for event in Kept.sent])
    """
    assert python(program).stdout.strip() == "['MemoryLeakSuspected']"
