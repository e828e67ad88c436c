"""Sinks by name: what is accepted, and what an error says."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import Run
from sinks_runs import ramp, run, watcher_of

import memwatch
from memwatch.config import SettingError
from memwatch.model import Report
from memwatch.sinks import Awaiting, by_name
from memwatch.sinks.figures import METRICS


def test_an_unknown_name_is_an_error_that_names_the_nearest_and_all() -> None:
    with pytest.raises(
        SettingError, match=r"'sentri' is not the name of a sink, did you mean sentry\? Give one of sentry, prometheus"
    ):
        by_name("sentri")


def test_an_error_shows_nothing_of_an_address() -> None:
    for name in ("webhok:https://example.org/hooks/s3cret", "webhook:ftp://user:s3cret@example.org/", "webhook:https:///s3cret"):
        with pytest.raises(SettingError) as caught:
            by_name(name)
        assert "s3cret" not in str(caught.value)
        assert "webhook:https://" in str(caught.value)


@pytest.mark.parametrize(
    ("name", "extra", "package"),
    [
        ("sentry", "sentry", "sentry-sdk"),
        ("prometheus", "prometheus", "prometheus-client"),
        ("otel", "otel", "opentelemetry-api"),
    ],
)
def test_a_missing_library_is_an_error_with_the_command_that_installs_it(name: str, extra: str, package: str, python: Run) -> None:
    program = f"""
        import sys
        class NotInstalled:
            def find_spec(self, name, path=None, target=None):
                if name.partition(".")[0] in ("sentry_sdk", "prometheus_client", "opentelemetry"):
                    raise ModuleNotFoundError(name)
        sys.meta_path.insert(0, NotInstalled())
        import memwatch
        try:
            memwatch.start(directory=False, sinks=[{name!r}])
        except memwatch.SettingError as error:
            print(error)
    """
    assert f"needs {package}, which is not installed: pip install 'memwatch[{extra}]'" in python(program).stdout


def test_naming_a_sink_loads_neither_its_library_nor_ssl(python: Run) -> None:
    """gevent has to patch ssl before anybody imports it."""
    program = """
        import sys, memwatch
        memwatch.start(directory=False, interval="50ms", sinks=["sentry", "prometheus", "otel"])
        for _ in range(3):
            memwatch.current().tick()
        memwatch.stop()
        print(sorted({"ssl", "sentry_sdk", "prometheus_client", "opentelemetry"} & set(sys.modules)))
    """
    assert python(program).stdout.strip() == "[]"


def test_sinks_named_in_the_environment_are_told(python: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEMWATCH_SINKS", "prometheus")
    program = """
        import memwatch, prometheus_client
        watcher = memwatch.start(directory=False)
        watcher.tick()
        print(prometheus_client.generate_latest().decode())
    """
    assert 'memwatch_state{state="warming-up"} 1.0' in python(program).stdout


def test_the_same_name_given_twice_is_told_once() -> None:
    watcher = memwatch.Watcher(directory=False, sinks=["otel", "otel"])
    watcher.add_callbacks(sinks=["otel"])
    assert len(watcher._audience.sinks) == 1


class Heard:
    """Keeps what it was told."""

    def __init__(self) -> None:
        self.heard: list[str] = []

    def told(self, occasion: str, report: Report) -> None:
        self.heard.append(f"told {occasion}")

    def happened(self, event: Any) -> None:
        self.heard.append(event.what)

    def ticked(self, sample: Any, report: Report) -> None:
        self.heard.append("ticked")

    def ended(self) -> None:
        self.heard.append("ended")


def test_what_happened_while_the_library_was_not_there_is_told_when_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Heard] = []

    def make() -> Heard:
        made.append(Heard())
        return made[-1]

    sink = Awaiting("late", "a_library_that_comes_later", make)
    watcher, clock = watcher_of(ramp(30.0), [sink], memory_limit="8GiB")
    run(watcher, clock, 120)
    assert made == []
    monkeypatch.setitem(sys.modules, "a_library_that_comes_later", importlib.util)
    run(watcher, clock, 2)
    watcher.stop()
    (heard,) = made
    assert heard.heard[:4] == ["told growth", "told leak", "told exhaustion", "told doubled"]
    assert heard.heard[-3:] == ["ticked", "ticked", "ended"]


def test_a_leak_that_nobody_was_told_of_is_said_at_the_end(caplog: pytest.LogCaptureFixture) -> None:
    watcher, clock = watcher_of(ramp(), [Awaiting("late", "a_library_that_never_comes", Heard)])
    run(watcher, clock, 110)
    watcher.stop()
    assert "late was told nothing of 1 reports: the program never imported a_library_that_never_comes" in caplog.text


def test_a_sink_that_cannot_be_made_is_disabled_under_its_own_name(monkeypatch: pytest.MonkeyPatch) -> None:
    def make() -> Heard:
        raise RuntimeError("a version that is too old")

    monkeypatch.setitem(sys.modules, "a_library_that_comes_later", importlib.util)
    watcher, clock = watcher_of(ramp(), [Awaiting("late", "a_library_that_comes_later", make)])
    run(watcher, clock, 3)
    assert watcher.failures == {"memwatch.sinks.late": "RuntimeError: a version that is too old"}


def test_a_library_that_is_being_imported_is_not_there_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader("half", None))  # type: ignore[arg-type]
    module.__spec__._initializing = True  # type: ignore[union-attr]
    monkeypatch.setitem(sys.modules, "half", module)
    made: list[int] = []
    sink = Awaiting("half", "half", lambda: made.append(1) or Heard())
    sink.ticked(None, None)  # type: ignore[arg-type]
    assert made == []
    module.__spec__._initializing = False  # type: ignore[union-attr]
    sink.ticked(None, None)  # type: ignore[arg-type]
    assert made == [1]


def test_every_metric_is_in_the_reference_as_it_is() -> None:
    text = (Path(__file__).parent.parent / "docs/reference/metrics.md").read_text()
    for metric in METRICS:
        labels = ", ".join(f"`{label}`" for label in metric.labels)
        assert f"| `{metric.name}` | {labels} | `{metric.instrument}` | `{metric.unit}` | {metric.what} |" in text
