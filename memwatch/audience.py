"""Who is told: sinks, callbacks, the log.

Law: whatever a sink raises is caught, logged once with its name, and the sink is told nothing more; the others are.  The callers
hold no lock of ours.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal

from memwatch import osthread, units
from memwatch.model import Event, Report, Sample
from memwatch.pressure import Pressure, hook_name

log = logging.getLogger("memwatch")

Occasion = Literal["leak", "doubled", "over", "growth", "exhaustion", "peak", "finding"]
"""Why a sink is told: a leak was found, its growth has doubled, it is over; memory grows at or above `growth_limit` without being
called a leak; it runs out within the hour; a pressure level was entered; an object that should be gone is alive."""

METHODS = ("told", "happened", "ticked", "ended")
"""What a sink may have besides being callable; each is optional:

- `told(occasion, report)`: rarely; the report is complete.
- `happened(event)`: every event of the record: verdicts, pressure, relief, alerts, findings, notes.
- `ticked(sample, report)`: every interval, on the watcher's thread; the report is without history.
- `ended()`: the watch has ended.
"""

Sink = Callable[[Report], Any] | Any
"""A function that is called with a `Report` on every occasion, or an object with some of `METHODS`."""


class Audience:
    """Sinks and callbacks of one watcher.

    Args:
        on_failure: called with the name of one that raised, and what it raised; it is told nothing more.

    Threads: told by one at a time; added to from any.
    """

    def __init__(self, on_failure: Callable[[str, BaseException], None]) -> None:
        self._on_failure = on_failure
        self.sinks: dict[str, Any] = {}
        self._on_pressure: dict[str, Callable[[Pressure], Any]] = {}

    def add(
        self,
        *,
        sinks: Iterable[Sink | str] | None = None,
        on_leak: Callable[[Report], Any] | None = None,
        on_pressure: Callable[[Pressure], Any] | None = None,
    ) -> None:
        """Add some.  One that is given again is told once.

        Args:
            sinks: functions, objects with some of `METHODS`, or names (`memwatch.sinks.by_name`).

        Raises:
            TypeError: one of them can be told nothing.
            memwatch.config.SettingError: there is no sink of that name, or what it needs is not installed.
        """
        if isinstance(sinks, str):
            raise TypeError(f"sinks must be a list, such as [{sinks!r}], not a string")
        added = [_named(sink) if isinstance(sink, str) else sink for sink in sinks or ()]
        for callback in (*added, on_leak, on_pressure):
            if callback is not None and not callable(callback) and not _methods(callback):
                raise TypeError(f"a sink must be callable or have one of {', '.join(METHODS)}, not {type(callback).__name__}")
        for sink in added:
            self.sinks[_free_name(self.sinks, sink)] = sink
        if on_leak is not None:
            self.sinks[_free_name(self.sinks, on_leak)] = _OnlyLeaks(on_leak)
        if on_pressure is not None:
            self._on_pressure[_free_name(self._on_pressure, on_pressure)] = on_pressure

    def told(self, occasion: Occasion, report: Report) -> None:
        """Tell every sink."""
        for name, sink in list(self.sinks.items()):
            if isinstance(sink, _OnlyLeaks):
                if occasion in ("leak", "doubled"):
                    self._call(name, sink.callback, report)
            else:
                self._call(name, _tell, sink, occasion, report)

    def happened(self, events: Iterable[Event]) -> None:
        """Tell those that want every event."""
        for name, sink in list(self.sinks.items()):
            for event in events:
                if name in self.sinks:
                    self._call(name, _use, sink, "happened", event)

    def ticked(self, sample: Sample, report: Report) -> None:
        """Tell those that want every sample."""
        for name, sink in list(self.sinks.items()):
            self._call(name, _use, sink, "ticked", sample, report)

    def ended(self) -> None:
        """Tell those that want to know of the end."""
        for name, sink in list(self.sinks.items()):
            self._call(name, _use, sink, "ended")

    def pressed(self, pressure: Pressure) -> None:
        """Tell of a pressure level that was entered."""
        for name, callback in list(self._on_pressure.items()):
            self._call(name, callback, pressure)

    def _call(self, name: str, method: Callable[..., Any], *arguments: Any) -> None:
        try:
            with osthread.program_signals():
                method(*arguments)
        except BaseException as error:
            self.sinks.pop(name, None)
            self._on_pressure.pop(name, None)
            self._on_failure(name, error)


class _OnlyLeaks:
    """Marks `on_leak` among the sinks: it is told of leaks alone."""

    def __init__(self, callback: Callable[[Report], Any]) -> None:
        self.callback = callback


def _use(sink: Any, name: str, *arguments: Any) -> None:
    """Call a method if a sink has it.  To ask for one may raise, too: a proxy for something that is not there yet."""
    method = getattr(sink, name, None)
    if method is not None:
        method(*arguments)


def _tell(sink: Any, occasion: Occasion, report: Report) -> None:
    if _methods(sink):
        _use(sink, "told", occasion, report)
    else:
        sink(report)


def _methods(sink: Any) -> list[str]:
    return [name for name in METHODS if callable(getattr(sink, name, None))]


def _named(name: str) -> Any:
    from memwatch.sinks import by_name  # loaded when one is wanted

    return by_name(name)


def _free_name(taken: Mapping[str, Any], sink: Any) -> str:
    """A name for a sink: its own, numbered where another one has it."""
    name = numbered = hook_name(sink)
    count = 1
    while numbered in taken and getattr(taken[numbered], "callback", taken[numbered]) != sink:
        count += 1
        numbered = f"{name} ({count})"
    return numbered


def say(message: str, *arguments: object) -> None:
    """Log a warning of this process: workers write into one log.  A sentence that names its process goes to `headline`."""
    headline("pid %d: " + message, os.getpid(), *arguments)


def headline(message: str, *arguments: object) -> None:
    """Log a warning, whatever the program has made of logging.

    `logging.config` disables every logger that exists when it is called, unless told otherwise; ours usually exists by then.  And a
    handler that raises must not end our thread.
    """
    try:
        log.disabled = False
        log.warning(message, *arguments)
    except Exception:
        pass  # there is no other way left to tell anybody


def log_event(event: Event) -> None:
    """What people are told in the log besides verdicts and failures."""
    details = event.details
    if event.what == "alert" and details["alert"] == "peak":
        limit = details["limit"]
        of = units.format_sizes(details["rss"], limit) if limit else units.format_size(details["rss"])
        say("memory has reached the %s level: %s", details["level"], of)
    elif event.what == "alert" and details["alert"] == "growth":
        say("memory grows by %s, at or above the growth limit", units.format_rate(details["rate"]))
    elif event.what == "alert":
        say("memory runs out %s at this rate", units.format_left(details["exhausted_in_s"]))
    elif event.what == "note" and details.get("note") in ("request", "route"):
        from memwatch.report.happenings import happened  # loaded when there is something to say

        say("%s", happened(event))
    elif event.what == "finding":
        reason = f" ({details['reason']})" if details["reason"] else ""
        held = "held by " + " → ".join(details["held_by"]) if details["held_by"] else details["note"]
        say("%s is still alive after %.0f s%s: %s", details["type"], details["alive_s"], reason, held)
