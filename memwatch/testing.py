"""Official fakes, for tests of programs that use memwatch and for our own.

clock = FakeClock()
watcher = Watcher(interval="10s", directory=False, clock=clock, source=ScriptedSource({"rss": n} for n in levels))
watcher.tick(); clock.advance(10.0)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping

from memwatch.model import Report


class FakeClock:
    """A clock that moves when told to.

    Args:
        time_s: Unix time at the start.
    """

    def __init__(self, time_s: float = 1_800_000_000.0) -> None:
        self._time_s = time_s
        self._monotonic_s = 1000.0

    def time(self) -> float:
        """Unix time."""
        return self._time_s

    def monotonic(self) -> float:
        """Seconds that never go back."""
        return self._monotonic_s

    def advance(self, seconds: float) -> None:
        """Let time pass."""
        self._time_s += seconds
        self._monotonic_s += seconds

    def set_wall(self, time_s: float) -> None:
        """Set the wall clock, as an administrator or NTP does; no time passes."""
        self._time_s = time_s


class ScriptedSource:
    """Readings given beforehand; the last one is repeated when they run out.  An exception among them is raised."""

    def __init__(self, readings: Iterable[Mapping[str, float] | Exception]) -> None:
        self._readings: Iterator[Mapping[str, float] | Exception] = iter(readings)
        self._last: Mapping[str, float] | Exception = {}

    def read(self, on_error: Callable[[str, Exception], None] | None = None) -> Mapping[str, float]:
        """The next reading."""
        self._last = next(self._readings, self._last)
        if isinstance(self._last, Exception):
            if on_error is None:
                raise self._last
            on_error("scripted", self._last)
            return {}
        return dict(self._last)


class RecordingSink:
    """Keeps the reports it is called with in `reports`."""

    def __init__(self) -> None:
        self.reports: list[Report] = []

    def __call__(self, report: Report) -> None:
        self.reports.append(report)
