"""Sinks with methods: who is told what, and when."""

from __future__ import annotations

from typing import Any

import pytest

from memwatch import config
from memwatch.audience import METHODS, Audience
from memwatch.model import Event, Report, Sample
from memwatch.testing import FakeClock, ScriptedSource
from memwatch.watcher import Watcher

MIB = 2.0**20


class Notebook:
    def __init__(self) -> None:
        self.occasions: list[tuple[str, Report]] = []
        self.events: list[Event] = []
        self.samples: list[Sample] = []
        self.reports: list[Report] = []
        self.ends = 0

    def told(self, occasion: str, report: Report) -> None:
        self.occasions.append((occasion, report))

    def happened(self, event: Event) -> None:
        self.events.append(event)

    def ticked(self, sample: Sample, report: Report) -> None:
        self.samples.append(sample)
        self.reports.append(report)

    def ended(self) -> None:
        self.ends += 1


def watch(mib_per_tick: float, ticks: int, **options: Any) -> Watcher:
    clock = FakeClock()
    readings = [
        {"rss": (100 + mib_per_tick * n) * MIB, "heap": (50 + mib_per_tick * n) * MIB, "blocks": 1e6 + 2e4 * n, "cpu": n * 1.0}
        for n in range(ticks)
    ]
    watcher = Watcher(interval="10s", directory=False, clock=clock, source=ScriptedSource(readings), **options)
    for _ in range(ticks):
        watcher.tick()
        clock.advance(10)
    watcher.stop()
    return watcher


def test_a_sink_with_methods_is_told_why_each_event_each_sample_and_the_end() -> None:
    sink = Notebook()
    watch(2.0, 300, sinks=[sink], memory_limit="4GiB")
    occasions = [occasion for occasion, _ in sink.occasions]
    assert occasions[0] == "leak"
    assert {"doubled"} <= set(occasions) <= {"doubled", "leak", "exhaustion", "growth"}
    assert sink.occasions[0][1].verdict.state == "leaking"
    assert [event.details["state"] for event in sink.events if event.what == "verdict"][-1] == "leaking"
    assert len(sink.samples) == 300
    assert sink.samples[7].values["rss"] == 114 * MIB
    assert sink.reports[-1].verdict.state == "leaking"
    assert sink.ends == 1


def test_growth_at_the_growth_limit_is_told_before_it_is_called_a_leak_and_once() -> None:
    sink = Notebook()
    watch(10.0, 60, sinks=[sink], memory_limit="100GiB", growth_limit="10MiB/min")
    alerts = [event for event in sink.events if event.what == "alert" and event.details["alert"] == "growth"]
    assert len(alerts) == 1
    assert alerts[0].details["rate"] == pytest.approx(1.0 * MIB, rel=0.1)
    occasions = [occasion for occasion, _ in sink.occasions]
    assert occasions.index("growth") < occasions.index("leak")


def test_growth_that_comes_and_goes_within_minutes_is_told_once() -> None:
    sink = Notebook()
    # Four steep rises with a rest between them, within some two minutes.
    level, readings = 100.0, []
    for n in range(640):
        level += 0.4 if n % 160 < 70 else 0.0
        readings.append({"rss": level * MIB, "heap": (level - 50) * MIB, "cpu": n * 0.02})
    clock = FakeClock()
    options: dict[str, Any] = {"memory_limit": "100GiB", "growth_limit": "10MiB/min"}
    watcher = Watcher(interval="200ms", directory=False, clock=clock, source=ScriptedSource(readings), sinks=[sink], **options)
    for _ in readings:
        watcher.tick()
        clock.advance(0.2)
    watcher.stop()
    states = [event.details["state"] for event in sink.events if event.what == "verdict"]
    assert states.count("growing") >= 2, states  # it did come and go
    assert [occasion for occasion, _ in sink.occasions].count("growth") == 1


def test_growth_below_the_growth_limit_is_no_fast_growth() -> None:
    sink = Notebook()
    watch(1.0, 100, sinks=[sink], memory_limit="100GiB", growth_limit="10MiB/min")
    assert "growth" not in [occasion for occasion, _ in sink.occasions]


@pytest.mark.parametrize("method", METHODS)
def test_a_method_that_raises_costs_that_sink_alone(method: str) -> None:
    def fails(*arguments: object) -> None:
        raise RuntimeError("no network")

    bad, good = Notebook(), Notebook()
    setattr(bad, method, fails)
    watcher = watch(2.0, 300, sinks=[bad, good])
    assert list(watcher.failures.values()) == ["RuntimeError: no network"]
    assert len(good.samples) == 300
    assert good.ends == 1


def test_one_method_is_enough() -> None:
    seen: list[str] = []

    class OnlyEvents:
        def happened(self, event: Event) -> None:
            seen.append(event.what)

    watch(2.0, 200, sinks=[OnlyEvents()])
    assert "verdict" in seen


def test_what_can_be_told_nothing_is_refused_and_so_is_a_string_of_names() -> None:
    with pytest.raises(TypeError, match="must be callable or have one of told, happened, ticked, ended, not object"):
        Watcher(sinks=[object()])
    with pytest.raises(TypeError, match=r"must be a list, such as \['sentry'\]"):
        Watcher(sinks="sentry")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("sentry", ("sentry",)),
        (" sentry , prometheus ", ("sentry", "prometheus")),
        ("webhook:https://h/x?a=1,2,otel", ("webhook:https://h/x?a=1,2", "otel")),
        ("", ()),
    ],
)
def test_names_of_sinks_are_read_from_the_environment(text: str, names: tuple[str, ...]) -> None:
    assert config.load(environ={"MEMWATCH_SINKS": text}).sinks == names


def test_a_sink_that_raises_when_it_is_looked_at_is_disabled_and_the_others_are_told() -> None:
    class Proxy:
        def __call__(self, report: Any) -> None: ...

        there = True

        def __getattr__(self, name: str) -> Any:
            raise AttributeError(name) if self.there else RuntimeError("nothing is behind it any more")

    failed: list[str] = []
    told: list[Any] = []
    audience = Audience(lambda name, error: failed.append(str(error)))
    audience.add(sinks=[Proxy(), told.append])
    Proxy.there = False
    audience.ticked(None, None)  # type: ignore[arg-type]
    audience.told("leak", "a report")  # type: ignore[arg-type]
    assert failed == ["nothing is behind it any more"]
    assert told == ["a report"]
